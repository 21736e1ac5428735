//! CI jobs. Every project has one that begins with each minute, runs for forty seconds, and writes a line a second.

use std::time::{Duration, SystemTime};

use humantime::format_rfc3339_millis;
use serde_json::{Value, json};

use super::{Call, Outcome, message, paging};
use crate::http::response::{Content, Response};
use crate::repository::DEFAULT_BRANCH;
use crate::world::{Project, beginning};

/// One job, at one time.
struct Job {
    id: u64,
    name: &'static str,
    started: SystemTime,
    /// How long it has run, or did.
    ran: Duration,
    status: &'static str,
}

/// Those of the last minutes, the newest first, and the one of old.
pub fn list(call: &Call, project: &Project) -> Outcome {
    let now = SystemTime::now();
    let newest = FIRST + minutes(now);
    let ids = (newest.saturating_sub(LISTED - 1).max(FIRST)..=newest).rev().chain([OLD]);
    let jobs: Vec<Job> = ids.filter_map(|id| Job::at(id, now)).collect();
    paging::by_number(call, &jobs, |job| job.to_json(project, &call.hub.url))
}

pub fn show(call: &Call, project: &Project, id: &str) -> Outcome {
    let job = find(id, SystemTime::now())?;
    Ok(Response::json(200, &job.to_json(project, &call.hub.url)))
}

/// All that it wrote so far, as GitLab sends it. The old job's comes slowly: a line every 100 ms, for two seconds.
pub fn trace(id: &str) -> Outcome {
    let job = find(id, SystemTime::now())?;
    let text = Response::new(200).header("Content-Type", "text/plain");
    if job.id == OLD {
        let pieces = (1..=20).map(|line| format!("line {line} of 20\n").into_bytes()).collect();
        return Ok(text.content(Content::Pieces { pieces, pause: Duration::from_millis(100) }));
    }
    let mut log = "\x1b[0KRunning with gitlab-runner\n".to_owned();
    for second in 1..=job.ran.as_secs() {
        log += &format!("sample {second} of {}: \x1b[32;1mread\x1b[0;m\n", RUNS_FOR.as_secs());
    }
    match job.status {
        "success" => log += "\x1b[32;1mJob succeeded\x1b[0;m\n",
        "failed" => log += "\x1b[31;1mERROR: Job failed: exit code 1\x1b[0;m\n",
        _ => {}
    }
    Ok(text.content(Content::Bytes(log.into_bytes())))
}

fn find(id: &str, now: SystemTime) -> Result<Job, Response> {
    id.parse().ok().and_then(|id| Job::at(id, now)).ok_or_else(|| message(404, "404 Not found"))
}

impl Job {
    /// `None` if there is none of this number, or not yet.
    fn at(id: u64, now: SystemTime) -> Option<Self> {
        if id == OLD {
            return Some(Self { id, name: "build:test", started: beginning(), ran: RUNS_FOR, status: "success" });
        }
        let started = beginning() + Duration::from_secs(60) * u32::try_from(id.checked_sub(FIRST)?).ok()?;
        let ran = now.duration_since(started).ok()?;
        let status = match id % 4 {
            _ if ran < RUNS_FOR => "running",
            0 => "failed",
            _ => "success",
        };
        Some(Self { id, name: "validate", started, ran: ran.min(RUNS_FOR), status })
    }

    fn to_json(&self, project: &Project, url: &str) -> Value {
        let at = |time| format_rfc3339_millis(time).to_string();
        let path = &project.path_with_namespace;
        json!({
            "id": self.id,
            "name": self.name,
            "stage": "test",
            "status": self.status,
            "ref": DEFAULT_BRANCH,
            "tag": false,
            "allow_failure": false,
            "created_at": at(self.started),
            "started_at": at(self.started),
            "finished_at": (self.status != "running").then(|| at(self.started + self.ran)),
            "duration": self.ran.as_secs_f64(),
            "web_url": format!("{url}/{path}/-/jobs/{}", self.id),
        })
    }
}

/// Whole ones, since the seeded world came to be.
fn minutes(now: SystemTime) -> u64 {
    now.duration_since(beginning()).unwrap_or_default().as_secs() / 60
}

/// The job that has been there from the beginning.
const OLD: u64 = 9;
/// The number of the first minute's job.
const FIRST: u64 = 1000;
/// How many of the last minutes' jobs are listed.
const LISTED: u64 = 6;
const RUNS_FOR: Duration = Duration::from_secs(40);
