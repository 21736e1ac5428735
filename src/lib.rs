//! A backend-for-frontend gateway for GitLab.
//!
//! A single-page app talks to it by same-origin `fetch`. It logs people in at a GitLab (a *DataHUB*), seals their tokens
//! into a cookie that no script can read, and forwards the app's API calls with the token attached. It stores nothing:
//! any process that holds the keys can serve any request.
//!
//! Four rooms carry it. [`auth`] gets you in, [`session`] keeps you in, [`proxy`] takes you through, and [`datahub`] is
//! the far end. [`origin`] stands at the door; [`context`], [`seal`], [`access_log`], [`metrics`] and [`error`] are the ground. Imports run down only:
//!
//! ```text
//! main → { server | reload } → config → { auth | proxy | admin } → session → { datahub | origin } → { context | seal } → access_log → { metrics | error }
//! ```
//!
//! `config` stands above the rooms because it parses into their types.

pub mod access_log;
pub mod admin;
pub mod auth;
pub mod config;
pub mod context;
pub mod datahub;
pub mod error;
pub mod guard;
pub mod http;
pub mod metrics;
pub mod proxy;
pub mod reload;
pub mod seal;
pub mod server;
pub mod session;
