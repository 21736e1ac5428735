//! Cut-offs: a session whose login was before one has ended. So operators end sessions, which are stored nowhere.

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
    datahubs: HashMap<DataHubId, DataHubCutOffs>,
}

#[derive(Debug, Default)]
struct DataHubCutOffs {
    all: Option<SystemTime>,
    users: HashMap<Box<[u8]>, SystemTime>,
}

impl NotBefore {
    /// Holds `cut_offs` until it is replaced.
    pub fn new(cut_offs: CutOffs) -> Self {
        let mut datahubs = HashMap::<_, DataHubCutOffs>::new();
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

    /// Whether a cut-off has ended `session`. A session of the very second of the cut-off has not ended.
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::session::open_session::tests::open;

    #[test]
    fn a_cut_off_ends_whom_it_names_and_nobody_else() {
        // Of user 7, from second 1,795,000,192 on.
        let session =
            open(b"\x03\x6a\xfd\x83\x80\x00\xa0\x38\x80\xf5\x24\x80\xa3\x05\x07\x04user\x00\x05\xab\xcd\x06xyz");
        let session = session.expect("a session");
        let login = session.created_at();
        let [here, there] = ["a", "b"].map(|id| id.parse::<DataHubId>().expect("an id"));
        let second = Duration::from_secs(1);
        let of_all = |time| CutOffs { all: Some(time), ..CutOffs::default() };
        let of_datahub = |id: &DataHubId, time| CutOffs { datahubs: [(id.clone(), time)].into(), ..CutOffs::default() };
        let of_user = |id: &DataHubId, user: &str, time| CutOffs {
            users: [(id.clone(), [(user.to_owned(), time)].into())].into(),
            ..CutOffs::default()
        };
        for (case, cut_offs, has_ended) in [
            ("none", CutOffs::default(), false),
            ("everybody, a second later", of_all(login + second), true),
            ("everybody, the very second", of_all(login), false),
            ("this DataHUB, a second later", of_datahub(&here, login + second), true),
            ("this DataHUB, the very second", of_datahub(&here, login), false),
            ("another DataHUB", of_datahub(&there, login + second), false),
            ("this user, a second later", of_user(&here, "7", login + second), true),
            ("this user, the very second", of_user(&here, "7", login), false),
            ("another user", of_user(&here, "77", login + second), false),
            ("the same id at another DataHUB", of_user(&there, "7", login + second), false),
        ] {
            assert_eq!(NotBefore::new(cut_offs).has_ended(&session, &here), has_ended, "{case}");
        }
        let held = NotBefore::default();
        let clone = held.clone();
        held.replace_by(&NotBefore::new(of_user(&here, "7", login + second)));
        assert!(clone.has_ended(&session, &here), "replaced for everybody who holds it");
    }
}
