//! The one loop that all controllers share: what the watches tell goes in, keys are reconciled, writes are carried out.
//!
//! Invariants: everything that is already known is taken in before anything is decided, so a start sees the whole
//! cluster first; a decision (`reconcile`) never waits, so it is made on one state of the world; no two writes are
//! under way for one key. A failed key comes back with back-off; nothing else waits for it.

use std::fmt::{Debug, Display};
use std::pin::Pin;

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, Stream, StreamExt};
use kube::Resource;
use portolan_client::{Cache, Change};
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use crate::index::Write;
use crate::queue::Queue;
use crate::refusal;

/// The effects of one decision.
pub(crate) type Effects = BoxFuture<'static, Outcome>;

/// How they ended. Some writes may have been made before one failed.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) writes: Vec<Write>,
    pub(crate) error: Option<kube::Error>,
}

impl From<Result<(), kube::Error>> for Outcome {
    fn from(result: Result<(), kube::Error>) -> Self {
        Self { writes: Vec::new(), error: result.err() }
    }
}

pub(crate) trait Controller: Send {
    const NAME: &'static str;
    /// A change of one of the kinds the controller watches.
    type Input: Send;
    type Key: Clone + Ord + Display + Send;

    /// Takes a change in and queues the keys that it concerns.
    fn observe(&mut self, input: Self::Input, queue: &mut Queue<Self::Key>);

    /// Decides what to do about the key; `None` for nothing.
    fn reconcile(&mut self, key: &Self::Key, queue: &mut Queue<Self::Key>) -> Option<Effects>;

    /// Remembers how the effects ended, before anything else is decided about the key.
    fn finish(&mut self, _key: &Self::Key, _outcome: &Outcome, _queue: &mut Queue<Self::Key>) {}
}

pub(crate) type Inputs<I> = Pin<Box<dyn Stream<Item = I> + Send>>;

/// A cache's changes, as one of the inputs of a controller.
pub(crate) fn inputs<K, I: 'static>(cache: &Cache<K>, wrap: fn(Change<K>) -> I) -> Inputs<I>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    let mut receiver = cache.subscribe();
    Box::pin(futures::stream::poll_fn(move |context| receiver.poll_recv(context)).map(wrap))
}

/// Runs the controller until dropped, with at most `workers` keys under way.
pub(crate) async fn drive<C: Controller>(mut controller: C, inputs: Vec<Inputs<C::Input>>, workers: usize) {
    let mut inputs = futures::stream::select_all(inputs);
    let mut queue = Queue::default();
    let mut running = FuturesUnordered::new();
    loop {
        // Without the task budget, for it could end the draining before everything known has been taken in.
        while let Some(Some(input)) = tokio::task::coop::unconstrained(inputs.next()).now_or_never() {
            controller.observe(input, &mut queue);
        }
        while running.len() < workers
            && let Some(key) = queue.take(Instant::now())
        {
            match controller.reconcile(&key, &mut queue) {
                Some(effects) => running.push(effects.map(move |outcome| (key, outcome))),
                None => queue.done(&key),
            }
        }
        let deadline = queue.deadline().filter(|_| running.len() < workers);
        tokio::select! {
            Some(input) = inputs.next() => controller.observe(input, &mut queue),
            Some((key, outcome)) = running.next() => {
                controller.finish(&key, &outcome, &mut queue);
                match outcome.error {
                    None => queue.done(&key),
                    Some(error) => {
                        if refusal::is_stale(&error) {
                            tracing::debug!(controller = C::NAME, %key, %error, "acted on an old state; trying again");
                        } else {
                            tracing::warn!(controller = C::NAME, %key, %error, "cannot reconcile; trying again");
                        }
                        queue.failed(&key, Instant::now(), rand::random());
                    }
                }
            }
            () = tokio::time::sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {}
        }
    }
}
