//! STUB
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Reason {
    None,
    Expiring,
    Rejected,
}
