//! Whether the threads that serve requests still do: each is asked, and answers when it gets round to it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, ThreadId};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

/// The workers of a process. Clones are of the same ones.
#[derive(Debug, Clone, Default)]
pub struct Workers(Arc<WorkerList>);

type Question = oneshot::Sender<()>;

#[derive(Debug, Default)]
struct WorkerList {
    expected: AtomicUsize,
    /// By thread, since one that serves several listeners joins for each.
    threads: Mutex<HashMap<ThreadId, mpsc::UnboundedSender<Question>>>,
}

impl Workers {
    /// How many there are to be.
    pub fn expect(&self, count: usize) {
        self.0.expected.store(count, Ordering::Relaxed);
    }

    /// How many there are to be.
    pub fn expected(&self) -> usize {
        self.0.expected.load(Ordering::Relaxed)
    }

    /// This thread is one of them, until it ends.
    pub fn join(&self) {
        let (sender, mut questions) = mpsc::unbounded_channel::<Question>();
        self.0.threads.lock().unwrap_or_else(PoisonError::into_inner).insert(thread::current().id(), sender);
        actix_web::rt::spawn(async move {
            while let Some(question) = questions.recv().await {
                let _ = question.send(());
            }
        });
    }

    /// Asks them all. How many have answered in time, and how many were asked: those that have not ended.
    pub async fn ask(&self) -> (usize, usize) {
        let asked: Vec<_> = {
            let mut threads = self.0.threads.lock().unwrap_or_else(PoisonError::into_inner);
            threads.retain(|_, worker| !worker.is_closed());
            threads
                .values()
                .map(|worker| {
                    let (question, answer) = oneshot::channel();
                    let _ = worker.send(question);
                    timeout(LIMIT, answer)
                })
                .collect()
        };
        let count = asked.len();
        let answers = join_all(asked).await;
        (answers.iter().filter(|answer| matches!(answer, Ok(Ok(())))).count(), count)
    }
}

/// How long they may take.
pub(super) const LIMIT: Duration = Duration::from_secs(2);
