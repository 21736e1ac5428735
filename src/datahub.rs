//! The DataHUBs we serve: which there are, where each is, and what each calls us.

pub mod back_channel;
pub mod discovery;
pub mod health;
pub mod id_token;
pub mod oidc;
pub mod personal_token;
mod request_limit;
pub mod revocation;
pub mod tasks;
mod tls_error;
pub mod token;
pub mod token_endpoint;
pub mod transport;

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::access_log::{Event, LastSaid, event_because, process_event};
use crate::datahub::oidc::Provider;
use crate::datahub::transport::Address;
use crate::metrics;
use crate::rate::Rate;

/// One GitLab instance that we serve.
#[derive(Debug)]
pub struct DataHub {
    /// What paths and cookies call it.
    pub id: DataHubId,
    /// What people call it.
    pub name: String,
    /// One line for the login chooser.
    pub description: String,
    /// Further names for `?datahub=`, such as `tübingen`; never in a path or a cookie.
    pub aliases: Vec<String>,
    /// Where its pages and its API are.
    pub address: Address,
    /// Its OpenID provider, and what it knows us as.
    pub provider: Provider,
    /// How often it may be asked without a login, by all clients together; not at all if there is none.
    pub anonymous_rate: Option<Rate>,
    index: usize,
    /// That it refuses our client.
    client_reported: LastSaid,
    /// That a link of its answers was dropped.
    link_reported: LastSaid,
}

impl DataHub {
    /// A DataHUB that is not among others yet.
    pub fn new(
        id: DataHubId,
        name: String,
        description: String,
        aliases: Vec<String>,
        address: Address,
        provider: Provider,
        anonymous_rate: Option<Rate>,
    ) -> Self {
        let (client_reported, link_reported) = (LastSaid::default(), LastSaid::default());
        let index = 0;
        Self {
            id,
            name,
            description,
            aliases,
            address,
            provider,
            anonymous_rate,
            index,
            client_reported,
            link_reported,
        }
    }

    /// Counts that it refuses our client, and says so once a minute: until an operator mends that, nobody logs in there and
    /// no session is renewed.
    pub fn report_refused_client(&self, error: &dyn std::error::Error) {
        metrics::client_refused(self.id.as_str());
        if self.client_reported.is_due(REPORT_INTERVAL, Instant::now()) {
            process_event(Event::ClientRefused, &format!("{}: {error}", self.id));
        }
    }

    /// Says once a minute that a link or a redirect of its answers did not come down, and why: without it a client reads the
    /// first page only.
    pub fn report_dropped_link(&self, reason: &'static str) {
        if self.link_reported.is_due(REPORT_INTERVAL, Instant::now()) {
            event_because(Event::LinkDropped, self.id.as_str(), None, reason);
        }
    }

    /// Its place among the [`DataHubs`] it belongs to, from 0 on: for tables with a row for each of them.
    pub fn index(&self) -> usize {
        self.index
    }
}

/// Every DataHUB of this deployment, in the order of their ids.
#[derive(Debug, Clone)]
pub struct DataHubs(Arc<Listed>);

#[derive(Debug)]
struct Listed {
    all: Vec<Arc<DataHub>>,
    by_id: HashMap<Arc<str>, usize>,
}

impl DataHubs {
    /// `datahubs` in any order; ids and aliases are known to differ.
    pub fn new(mut datahubs: Vec<DataHub>) -> Self {
        datahubs.sort_by(|a, b| a.id.cmp(&b.id));
        let by_id = datahubs.iter().enumerate().map(|(index, datahub)| (datahub.id.shared(), index)).collect();
        let all = datahubs.into_iter().enumerate().map(|(index, datahub)| Arc::new(DataHub { index, ..datahub }));
        Self(Arc::new(Listed { all: all.collect(), by_id }))
    }

    /// The DataHUB of exactly this id.
    pub fn by_id(&self, id: &str) -> Option<&Arc<DataHub>> {
        self.0.by_id.get(id).map(|index| &self.0.all[*index])
    }

    /// The DataHUB of this id or alias: what `?datahub=` may name.
    pub fn by_name(&self, name: &str) -> Option<&Arc<DataHub>> {
        self.by_id(name).or_else(|| self.iter().find(|datahub| datahub.aliases.iter().any(|alias| alias == name)))
    }

    /// From now on each shows the client secret that the one of its id has among `others`.
    pub fn replace_secrets_by(&self, others: &Self) {
        for datahub in self.iter() {
            if let Some(other) = others.by_id(datahub.id.as_str()) {
                datahub.provider.replace_secret_by(&other.provider);
            }
        }
    }

    /// All of them, in the order of their ids.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<DataHub>> {
        self.0.all.iter()
    }
}

/// A DataHUB's id, such as `tuebingen`: 1 to 32 of `a-z0-9_-`, a letter or digit at both ends, no `__` (it separates the
/// parts of an environment variable's name). Safe in a path and in a cookie name. Clones share its text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DataHubId(Arc<str>);

impl DataHubId {
    /// The id's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The same text, for whoever keeps it longer than the id.
    pub fn shared(&self) -> Arc<str> {
        Arc::clone(&self.0)
    }
}

impl FromStr for DataHubId {
    type Err = DataHubIdError;

    fn from_str(text: &str) -> Result<Self, DataHubIdError> {
        let inner = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-');
        let bytes = text.as_bytes();
        let well_ended = bytes.first().zip(bytes.last()).is_some_and(|(first, last)| {
            [first, last].iter().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
        });
        if !well_ended || bytes.len() > 32 || !bytes.iter().all(inner) || text.contains("__") {
            return Err(DataHubIdError);
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for DataHubId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A text that cannot be a DataHUB's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a DataHUB's id is 1 to 32 of a-z, 0-9, _ and -, with a letter or digit at both ends and no __")]
pub struct DataHubIdError;

/// How long nothing more is said about one fault of a DataHUB's, or of its configuration.
pub const REPORT_INTERVAL: Duration = Duration::from_mins(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_safe_in_paths_and_cookie_names() {
        let longest = "a".repeat(32);
        for text in ["a", "7", "tuebingen", "tuebingen_testenv", "my-hub", longest.as_str()] {
            assert_eq!(text.parse::<DataHubId>().expect(text).as_str(), text);
        }
        let too_long = "a".repeat(33);
        for text in ["", "-a", "a-", "_a", "a_", "a__b", "A", "ü", "a b", "a/b", "a=b", "a;b", "..", too_long.as_str()]
        {
            assert_eq!(text.parse::<DataHubId>(), Err(DataHubIdError), "{text}");
        }
    }
}
