//! The world at the start: three users, some fifty projects, and one small ARC with every awkward file name we know.

use std::collections::BTreeMap;

use crate::repository::{Action, Author, DEFAULT_BRANCH, Repository};
use crate::world::{Project, User, World, beginning};

impl World {
    pub fn seeded() -> Self {
        let user = |id, username: &str, name: &str, signs_in| User {
            id,
            username: username.to_owned(),
            name: name.to_owned(),
            signs_in,
        };
        let mut projects = Vec::new();
        for (row, plant) in PLANTS.iter().enumerate() {
            for (column, treatment) in TREATMENTS.iter().enumerate() {
                let id = (row * TREATMENTS.len() + column + 1) as u64;
                // Mostly developer to owner, so that `min_access_level=30` still fills three pages.
                let level = [20, 30, 40, 50, 30, 40, 50, 30][id as usize % 8];
                let path = format!("plantlab/{}-{}", plant.to_lowercase(), treatment.to_lowercase());
                let members = [(TESTUSER, level), (JOERG, 30)];
                projects.push(project(
                    id,
                    &path,
                    &format!("{plant} {treatment}"),
                    !id.is_multiple_of(3),
                    &members,
                    readme(plant),
                ));
            }
        }
        projects.push(project(81, "group/sub/proj.name", "proj.name", true, &[(TESTUSER, 40)], readme("Moved")));
        for (id, name) in [(90, "barley-roots"), (91, "müsli"), (92, "notes")] {
            projects.push(project(id, &format!("joerg/{name}"), name, false, &[(JOERG, 50)], readme(name)));
        }
        projects.push(project(229, "plantlab/heat-stress", "heat-stress", true, &[(TESTUSER, 40), (JOERG, 50)], arc()));
        projects.push(project(230, "lu98be/testarc", "testarc", false, &[(TESTUSER, 50), (JOERG, 30)], test_arc()));
        Self {
            users: vec![
                user(TESTUSER, "testuser", "Test", true),
                user(JOERG, "joerg", "Jörg 100% Müller", true),
                user(137, "anna", "Anna Schmidt", false),
            ],
            projects,
            packages: BTreeMap::new(),
        }
    }
}

fn project(id: u64, path: &str, name: &str, public: bool, members: &[(u64, u64)], repository: Repository) -> Project {
    Project {
        id,
        path_with_namespace: path.to_owned(),
        name: name.to_owned(),
        description: format!("Seeded project {name}"),
        public,
        members: members.iter().copied().collect(),
        repository,
        created: beginning(),
    }
}

pub fn readme(title: &str) -> Repository {
    repository(&[("README.md", format!("# {title}\n").as_bytes())])
}

fn arc() -> Repository {
    repository(ARC_FILES)
}

/// The small ARC, and all that the corpus of proxied calls asks for.
fn test_arc() -> Repository {
    let csv: Vec<u8> = (0..40).flat_map(|row| format!("sample{row},{}\n", row * row).into_bytes()).collect();
    let mut files = ARC_FILES.to_vec();
    files.extend([
        ("runs/measurements.csv", csv.as_slice()),
        ("assays/mäße #1/isa.assay.xlsx", XLSX),
        ("assays/assay 1/dataset/reads 1.fastq", b"@r1\nACGT\n+\nIIII\n"),
        ("100% sure%2Fnot.txt", b"A percent sign, and an encoded slash that is none.\n"),
        ("a+b;c,d@e!f(g)'h*~.csv", csv.as_slice()),
        ("dir/old name.md", b"to be deleted\n"),
    ]);
    let mut repository = repository(&files);
    repository.create_branch("feature/x", DEFAULT_BRANCH);
    repository.create_branch("release/1.x", DEFAULT_BRANCH);
    repository.create_tag("v1.0.0-rc.1", DEFAULT_BRANCH);
    repository
}

fn repository(files: &[(&str, &[u8])]) -> Repository {
    let mut repository = Repository::default();
    let author = Author { name: "Test".to_owned(), email: "testuser@example.org".to_owned() };
    let actions =
        files.iter().map(|(path, content)| Action::Create { path: (*path).to_owned(), content: content.to_vec() });
    let result = repository.commit(DEFAULT_BRANCH, author, "Initial commit", beginning(), actions.collect());
    debug_assert!(result.is_ok(), "a path is seeded twice");
    repository
}

const TESTUSER: u64 = 7;
const JOERG: u64 = 8;
const PLANTS: [&str; 8] = ["Arabidopsis", "Barley", "Maize", "Potato", "Rice", "Rye", "Tomato", "Wheat"];
const TREATMENTS: [&str; 6] = ["Cold", "Drought", "Flooding", "Heat", "Light", "Salt"];
/// No spreadsheet, but it begins as one: a ZIP's local file header.
const XLSX: &[u8] = b"PK\x03\x04\x14\x00\x06\x00 not a real workbook, bytes \x00\xff\xfe\r\n";
const ARC_FILES: &[(&str, &[u8])] = &[
    ("LICENSE", b"Creative Commons Zero v1.0 Universal\n"),
    ("README.md", "# Heat stress\n\nHow plants bear 42 °C.\n".as_bytes()),
    ("isa.investigation.xlsx", XLSX),
    ("assays/proteomics/isa.assay.xlsx", XLSX),
    ("assays/proteomics/dataset/.gitkeep", b""),
    ("assays/proteomics/protocols/extraction.md", b"# Extraction\n\n1. Grind.\n2. Spin.\n"),
    ("studies/heat/isa.study.xlsx", XLSX),
    ("studies/heat/resources/.gitkeep", b""),
    ("workflows/.gitkeep", b""),
    ("runs/.gitkeep", b""),
];
