//! Sessions that began too early have ended: how operators end sessions that are stored nowhere.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;

use crate::datahub::DataHubId;
use crate::session::open_session::OpenSession;

/// The cut-offs in force. Clones hold the same ones, which may be replaced while others read.
#[derive(Debug, Clone, Default)]
pub struct NotBefore(Arc<ArcSwap<InForce>>);

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

/// The same, by DataHUB, of which those without any are left out.
#[derive(Debug, Default)]
struct InForce {
    all: Option<SystemTime>,
    datahubs: HashMap<DataHubId, AtDataHub>,
}

#[derive(Debug, Default)]
struct AtDataHub {
    all: Option<SystemTime>,
    users: HashMap<Box<[u8]>, SystemTime>,
}

impl NotBefore {
    /// These from the start.
    pub fn new(cut_offs: CutOffs) -> Self {
        let mut datahubs = HashMap::<_, AtDataHub>::new();
        for (id, time) in cut_offs.datahubs {
            datahubs.entry(id).or_default().all = Some(time);
        }
        for (id, users) in cut_offs.users.into_iter().filter(|(_, users)| !users.is_empty()) {
            let users = users.into_iter().map(|(id, time)| (id.into_bytes().into(), time));
            datahubs.entry(id).or_default().users = users.collect();
        }
        Self(Arc::new(ArcSwap::from_pointee(InForce { all: cut_offs.all, datahubs })))
    }

    /// From now on holds the cut-offs of `other`, for everybody who has a clone.
    pub fn replace_by(&self, other: &Self) {
        self.0.store(other.0.load_full());
    }

    /// Whether a cut-off has ended `session`. One that began in the very second of the cut-off lives.
    pub fn has_ended(&self, session: &OpenSession, datahub: &DataHubId) -> bool {
        let in_force = self.0.load();
        let is_before = |cut_off: Option<SystemTime>| cut_off.is_some_and(|time| session.created_at() < time);
        if is_before(in_force.all) {
            return true;
        }
        if in_force.datahubs.is_empty() {
            return false;
        }
        in_force.datahubs.get(datahub).is_some_and(|here| {
            is_before(here.all)
                || (!here.users.is_empty() && is_before(here.users.get(session.user_id(&mut [0; 20])).copied()))
        })
    }
}
