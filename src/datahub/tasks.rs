//! Work that comes to its end whoever leaves: a refresh, a code's exchange, a revocation.
//!
//! It runs on one thread that outlives the workers, and the process awaits it before it ends. What comes out of it goes to
//! whoever asked for it, if they are still there.

use std::pin::pin;

use futures_util::future::LocalBoxFuture;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

/// Where such work is handed in.
#[derive(Debug, Clone)]
pub struct Tasks(mpsc::UnboundedSender<Task>);

/// What runs it.
#[derive(Debug)]
pub struct TaskRunner(mpsc::UnboundedReceiver<Task>);

type Work = Box<dyn FnOnce() -> LocalBoxFuture<'static, ()> + Send>;

struct Task(Work);

impl std::fmt::Debug for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Task")
    }
}

impl Tasks {
    /// A place for work, and what runs it.
    pub fn new() -> (Self, TaskRunner) {
        let (tasks, queue) = mpsc::unbounded_channel();
        (Self(tasks), TaskRunner(queue))
    }

    /// Runs `work`, whoever waits for it. Its outcome comes by the channel; an error there means that the process ends and
    /// nothing is begun any more. An outcome that nobody waits for is dropped.
    pub fn run<F>(&self, work: impl FnOnce() -> F + Send + 'static) -> oneshot::Receiver<F::Output>
    where
        F: Future<Output: Send + 'static> + 'static,
    {
        let (sender, receiver) = oneshot::channel();
        let task = move || -> LocalBoxFuture<'static, ()> {
            let work = work();
            Box::pin(async move {
                let _ = sender.send(work.await);
            })
        };
        let _ = self.0.send(Task(Box::new(task)));
        receiver
    }
}

impl TaskRunner {
    /// Runs what is handed in until `end` is ready and the last of it is done, but no longer than until the deadline that
    /// `end` gives.
    pub async fn run(mut self, end: impl Future<Output = Instant>) {
        let mut running = JoinSet::new();
        let mut end = pin!(end);
        let deadline = loop {
            tokio::select! {
                Some(Task(work)) = self.0.recv() => { running.spawn_local(work()); }
                Some(_) = running.join_next() => {}
                deadline = &mut end => break deadline,
            }
        };
        if timeout_at(deadline, self.finish(&mut running)).await.is_err() {
            running.shutdown().await;
        }
    }

    async fn finish(&mut self, running: &mut JoinSet<()>) {
        // What is under way may hand in more, such as the revocation of what came too late.
        loop {
            while let Ok(Task(work)) = self.0.try_recv() {
                running.spawn_local(work());
            }
            if running.join_next().await.is_none() {
                break;
            }
        }
    }
}
