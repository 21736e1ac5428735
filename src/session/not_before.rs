//! Sessions that began too early have ended: how operators end sessions that are stored nowhere.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;

use crate::datahub::DataHubId;
use crate::session::Session;

/// The cut-offs in force. Clones hold the same ones, which may be replaced while others read.
#[derive(Debug, Clone, Default)]
pub struct NotBefore(Arc<ArcSwap<CutOffs>>);

/// Who must have logged in at which time or later, to the second.
#[derive(Debug, Default)]
pub struct CutOffs {
    /// Everybody.
    pub all: Option<SystemTime>,
    /// Whoever is logged in at this DataHUB.
    pub datahubs: BTreeMap<DataHubId, SystemTime>,
    /// The person of this id at this DataHUB.
    pub users: BTreeMap<DataHubId, BTreeMap<String, SystemTime>>,
}

impl NotBefore {
    /// These from the start.
    pub fn new(cut_offs: CutOffs) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(cut_offs)))
    }

    /// From now on holds the cut-offs of `other`, for everybody who has a clone.
    pub fn replace_by(&self, other: &Self) {
        self.0.store(other.0.load_full());
    }

    /// Whether a cut-off has ended `session`. One that began in the very second of the cut-off lives.
    pub fn has_ended(&self, session: &Session, datahub: &DataHubId) -> bool {
        let cut_offs = self.0.load();
        let user = cut_offs.users.get(datahub).and_then(|users| users.get(&session.user.id));
        let times = [cut_offs.all.as_ref(), cut_offs.datahubs.get(datahub), user];
        times.into_iter().flatten().any(|time| session.created_at < *time)
    }
}
