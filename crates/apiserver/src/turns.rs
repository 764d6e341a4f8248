//! Work that is asked for -> turns, so that who asks for little does not wait for who asks for a lot.
//!
//! Start-time fair queueing: work waits in the order in which it would begin if every user had an equal share of the
//! seats, so the next turn is that of who has had least. Who is alone gets all seats; nothing is kept free for nobody.
//! Invariants: no more turns than seats; a turn whose owner went away is the next one's.
//!
//! Source: P. Goyal, H. Vin, H. Cheng, "Start-time Fair Queueing" (1996); in spirit Kubernetes' API Priority and
//! Fairness (KEP-1040). Deliberately not here: FlowSchemas. What goes before what is fixed, in [`Admission`].

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use portolan_kinds::Status;
use tokio::sync::oneshot;

use crate::route::Target;
use crate::user::User;

/// Writes at work at one time. More would not make the disk faster, since what waits together is flushed together.
const WRITES: usize = 64;
/// How many of one user may wait, and for how long.
const QUEUE: usize = 512;
const PATIENCE: Duration = Duration::from_secs(10);
/// Large lists of one user that may be on their way at one time. Each holds on to what it shows.
const LISTS: usize = 64;
/// More users than this are forgotten once they owe nothing.
const REMEMBERED: usize = 1024;

pub(crate) struct Turns(Arc<Mutex<State>>);

struct State {
    free: usize,
    /// The virtual time: the start of what began last.
    now: u64,
    flows: HashMap<Arc<str>, Flow>,
    /// By their start, and in the order they came.
    waiting: BTreeMap<(u64, u64), Waiting>,
    came: u64,
}

#[derive(Default)]
struct Flow {
    /// When what was asked for so far would end.
    finish: u64,
    waiting: usize,
}

struct Waiting {
    flow: Arc<str>,
    call: oneshot::Sender<Turn>,
}

/// May be at work until it is dropped.
pub(crate) struct Turn(Arc<Mutex<State>>);

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = lock(&self.0);
        state.free += 1;
        // Who has gone away meanwhile gives the turn back at once, so this must not hold the lock.
        let Some((call, turn)) = state.next(&self.0) else { return };
        drop(state);
        let _ = call.send(turn);
    }
}

/// A place in the queue, left when the request goes away.
struct Queued<'a>(&'a Mutex<State>, (u64, u64));

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        let mut state = lock(self.0);
        if let Some(Waiting { flow, .. }) = state.waiting.remove(&self.1) {
            state.left(&flow);
        }
    }
}

// A poisoned lock means a panic between two assignments that cannot panic.
fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    fn left(&mut self, flow: &str) {
        if let Some(flow) = self.flows.get_mut(flow) {
            flow.waiting -= 1;
        }
    }

    fn next(&mut self, own: &Arc<Mutex<State>>) -> Option<(oneshot::Sender<Turn>, Turn)> {
        let ((start, _), Waiting { flow, call }) = self.waiting.pop_first()?;
        self.left(&flow);
        self.now = self.now.max(start);
        self.free -= 1;
        Some((call, Turn(own.clone())))
    }
}

enum Place {
    Now,
    Later((u64, u64), oneshot::Receiver<Turn>),
    Full,
}

impl Turns {
    pub(crate) fn new(seats: usize) -> Self {
        let state = State { free: seats, now: 0, flows: HashMap::new(), waiting: BTreeMap::new(), came: 0 };
        Self(Arc::new(Mutex::new(state)))
    }

    fn place(&self, user: &str, cost: u64, most: usize) -> Place {
        let mut guard = lock(&self.0);
        let state = &mut *guard;
        if state.flows.len() > REMEMBERED {
            let now = state.now;
            state.flows.retain(|_, flow| flow.waiting > 0 || flow.finish > now);
        }
        let name = state.flows.get_key_value(user).map_or_else(|| user.into(), |(name, _)| name.clone());
        let flow = state.flows.entry(name.clone()).or_default();
        let start = flow.finish.max(state.now);
        if state.free > 0 {
            flow.finish = start + cost;
            state.free -= 1;
            state.now = start;
            return Place::Now;
        }
        if flow.waiting >= most {
            return Place::Full;
        }
        flow.finish = start + cost;
        flow.waiting += 1;
        state.came += 1;
        let place = (start, state.came);
        let (call, called) = oneshot::channel();
        state.waiting.insert(place, Waiting { flow: name, call });
        Place::Later(place, called)
    }

    async fn wait(&self, place: Place) -> Option<Turn> {
        match place {
            Place::Now => Some(Turn(self.0.clone())),
            Place::Later(place, called) => {
                let _queued = Queued(&self.0, place);
                called.await.ok()
            }
            Place::Full => None,
        }
    }

    /// A turn for a part of something that has begun already, which waits for as long as it takes.
    pub(crate) async fn part(&self, user: &str) -> Option<Turn> {
        self.wait(self.place(user, 1, usize::MAX)).await
    }

    /// # Errors
    /// 429 when too much of the user's own waits already, or its turn does not come.
    pub(crate) async fn request(&self, user: &str, cost: u64) -> Result<Turn, Status> {
        let turn = tokio::time::timeout(PATIENCE, self.wait(self.place(user, cost, QUEUE))).await;
        turn.ok().flatten().ok_or_else(busy)
    }
}

fn busy() -> Status {
    Status::too_many_requests("the server has received too many requests, please try again later", 1)
}

/// All turns there are.
pub(crate) struct Admission {
    /// What keeps nodes and controllers from being taken for dead.
    pub(crate) vital: Turns,
    pub(crate) writes: Turns,
    /// Reading much, piece by piece: selecting among objects, and putting them into form. It takes half of the machine
    /// at most, so that small requests always find somebody at leisure.
    pub(crate) pieces: Turns,
    lists: Arc<Mutex<HashMap<String, usize>>>,
}

impl Admission {
    pub(crate) fn new() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            vital: Turns::new(WRITES),
            writes: Turns::new(WRITES),
            pieces: Turns::new((cores / 2).max(1)),
            lists: Arc::default(),
        }
    }

    /// # Errors
    /// 429 when the user has too many on their way.
    pub(crate) fn large_list(&self, user: &str) -> Result<LargeList, Status> {
        let mut lists = self.lists.lock().unwrap_or_else(PoisonError::into_inner);
        let count = lists.entry(user.to_owned()).or_default();
        if *count >= LISTS {
            return Err(busy());
        }
        *count += 1;
        Ok(LargeList { lists: self.lists.clone(), user: user.to_owned() })
    }
}

/// What a cluster lives by: a node's word that it is there, and controllers' word on who leads.
pub(crate) fn is_vital(user: &User, target: &Target) -> bool {
    match (target.kind.group, target.kind.plural) {
        ("coordination.k8s.io", "leases") => {
            user.as_node().is_some() || target.namespace.as_deref() == Some("kube-system")
        }
        ("", "nodes") => user.as_node().is_some(),
        _ => false,
    }
}

/// A large list on its way, until it is dropped.
pub(crate) struct LargeList {
    lists: Arc<Mutex<HashMap<String, usize>>>,
    user: String,
}

impl Drop for LargeList {
    fn drop(&mut self) {
        let mut lists = self.lists.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = lists.get_mut(&self.user) {
            *count -= 1;
            if *count == 0 {
                lists.remove(&self.user);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use futures::future::BoxFuture;

    use super::*;

    type Asking<'a> = BoxFuture<'a, Option<Turn>>;

    fn ask<'a>(turns: &'a Turns, user: &'a str, cost: u64) -> Asking<'a> {
        turns.wait(turns.place(user, cost, usize::MAX)).boxed()
    }

    /// Whose turn it is, one after the other, with one seat.
    fn order(asking: Vec<(&'static str, Asking<'_>)>, first: Turn) -> Vec<&'static str> {
        let mut asking = asking;
        let mut order = Vec::new();
        let mut turn = Some(first);
        while !asking.is_empty() {
            drop(turn.take());
            let ready =
                asking.iter_mut().enumerate().find_map(|(index, (_, asked))| Some((index, asked.now_or_never()?)));
            let (index, next) = ready.expect("a turn for somebody");
            order.push(asking.remove(index).0);
            turn = next;
        }
        order
    }

    #[test]
    fn who_asks_for_little_is_next() {
        let turns = Turns::new(1);
        let first = ask(&turns, "greedy", 1).now_or_never().unwrap().unwrap();
        let mut asking: Vec<_> = (0..5).map(|_| ("greedy", ask(&turns, "greedy", 1))).collect();
        asking.push(("modest", ask(&turns, "modest", 1)));
        assert_eq!(order(asking, first), ["modest", "greedy", "greedy", "greedy", "greedy", "greedy"]);
    }

    #[test]
    fn what_costs_more_counts_for_more() {
        let turns = Turns::new(1);
        let first = ask(&turns, "other", 1).now_or_never().unwrap().unwrap();
        let asking = vec![
            ("dear", ask(&turns, "dear", 3)),
            ("dear", ask(&turns, "dear", 3)),
            ("cheap", ask(&turns, "cheap", 1)),
            ("cheap", ask(&turns, "cheap", 1)),
            ("cheap", ask(&turns, "cheap", 1)),
        ];
        assert_eq!(order(asking, first), ["dear", "cheap", "cheap", "cheap", "dear"]);
    }

    #[tokio::test]
    async fn no_seat_is_lost_with_who_goes_away() {
        let turns = Turns::new(2);
        let held = [turns.part("a").await, turns.part("a").await];
        let mut gone_while_waiting = ask(&turns, "b", 1);
        assert!((&mut gone_while_waiting).now_or_never().is_none());
        let called = ask(&turns, "c", 1);
        drop(gone_while_waiting);
        drop(held);
        // Its turn has come, and it never looked.
        drop(called);
        let both = [turns.part("d").now_or_never(), turns.part("d").now_or_never()];
        assert!(both.iter().all(Option::is_some));
        assert!(turns.part("d").now_or_never().is_none(), "there are two seats");
    }

    #[tokio::test(start_paused = true)]
    async fn too_much_and_too_long_is_429() {
        let turns = Turns::new(1);
        let _held = turns.part("a").await;
        let mut waiting: Vec<_> = (0..QUEUE).map(|_| turns.request("a", 1).boxed()).collect();
        assert!(waiting.iter_mut().all(|asked| asked.now_or_never().is_none()));
        assert_eq!(turns.request("a", 1).now_or_never().unwrap().map(drop).unwrap_err().code(), 429);
        assert!(turns.request("b", 1).now_or_never().is_none(), "it is a's queue that is full");
        assert_eq!(turns.request("b", 1).await.map(drop).unwrap_err().code(), 429);
    }

    #[test]
    fn large_lists_of_one_user_are_counted() {
        let admission = Admission::new();
        let mut held: Vec<_> = (0..LISTS).map(|_| admission.large_list("a").unwrap()).collect();
        assert!(admission.large_list("a").is_err());
        assert!(admission.large_list("b").is_ok());
        held.pop();
        assert!(admission.large_list("a").is_ok());
    }
}
