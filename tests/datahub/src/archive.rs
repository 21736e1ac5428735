//! A `.tar.gz` of a tree, packed without compressing.

use crate::repository::Tree;

/// Gzip (RFC 1952) around stored deflate blocks (RFC 1951 § 3.2.4) around a ustar archive, in pieces.
pub fn tar_gz(tree: &Tree, folder: &str) -> Vec<Vec<u8>> {
    let mut tar: Vec<u8> = Vec::new();
    for (path, file) in tree {
        tar.extend(header(&format!("{folder}/{path}"), file.content.len()));
        tar.extend_from_slice(&file.content);
        tar.resize(tar.len().next_multiple_of(TAR_BLOCK), 0);
    }
    tar.resize(tar.len() + 2 * TAR_BLOCK, 0);

    let mut pieces = vec![vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255]];
    let blocks: Vec<&[u8]> = tar.chunks(usize::from(u16::MAX)).collect();
    for (index, block) in blocks.iter().enumerate() {
        let length = block.len() as u16;
        let last = u8::from(index + 1 == blocks.len());
        pieces.push([&[last], &length.to_le_bytes()[..], &(!length).to_le_bytes(), block].concat());
    }
    pieces.push([crc32(&tar).to_le_bytes(), (tar.len() as u32).to_le_bytes()].concat());
    pieces
}

/// One entry's header; a path beyond 100 bytes is cut.
fn header(path: &str, size: usize) -> [u8; TAR_BLOCK] {
    let mut header = [0; TAR_BLOCK];
    let mut put = |at: usize, text: &[u8]| header[at..at + text.len()].copy_from_slice(text);
    put(0, &path.as_bytes()[..path.len().min(100)]);
    put(100, b"0000644\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, format!("{size:011o}\0").as_bytes());
    put(136, b"14614700100\0");
    // The checksum counts its own field as spaces.
    put(148, b"        0");
    put(257, b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 * (crc & 1)))
    })
}

const TAR_BLOCK: usize = 512;
