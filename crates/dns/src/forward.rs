//! Questions that are not ours -> replies from the cache or from other servers.
//!
//! Invariants: one question is asked once at a time however many clients wait for it, so a loop of forwarders that
//! leads back here finds its own question waiting and ends with it instead of multiplying; and the number of questions
//! asked and of clients that wait is bounded, beyond which a client is told SERVFAIL at once.

use std::collections::HashMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::cache::Cache;
use crate::respond::{Question, reply, reply_unanswered};
use crate::upstream::{Ask, Upstreams};

/// Questions asked at the same time; each holds a socket.
const MAX_ASKED: usize = 256;
/// Clients that wait for one question.
const MAX_WAITING: usize = 256;
/// Jobs not yet looked at.
const MAX_QUEUED: usize = 1024;
/// Octets of replies kept.
const CACHE: usize = 2 << 20;

/// A question and the way back to who asked it.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) question: Box<Question>,
    pub(crate) reply_to: ReplyTo,
}

#[derive(Debug)]
pub(crate) enum ReplyTo {
    /// The socket does not block.
    Udp(Arc<UdpSocket>, SocketAddr),
    /// The connection the question came by.
    Tcp(mpsc::Sender<Vec<u8>>),
}

impl ReplyTo {
    /// A reply that cannot be sent is lost, as UDP's may be anyhow; the client asks again.
    fn send(&self, reply: Vec<u8>) {
        match self {
            Self::Udp(socket, peer) => {
                if let Err(error) = socket.send_to(&reply, peer) {
                    tracing::debug!(%peer, %error, "cannot send a reply");
                }
            }
            Self::Tcp(connection) => {
                let _ = connection.try_send(reply);
            }
        }
    }
}

/// Where jobs are put for a [`Forwarder`].
pub(crate) fn queue() -> (mpsc::Sender<Job>, mpsc::Receiver<Job>) {
    mpsc::channel(MAX_QUEUED)
}

pub(crate) struct Forwarder {
    upstreams: Arc<Upstreams>,
    jobs: mpsc::Receiver<Job>,
    cache: Cache,
    waiting: HashMap<Arc<Ask>, Vec<Job>>,
    asked: JoinSet<(Arc<Ask>, Option<Vec<u8>>)>,
}

impl Forwarder {
    pub(crate) fn new(upstreams: &[SocketAddr], jobs: mpsc::Receiver<Job>) -> Self {
        Self {
            upstreams: Arc::new(Upstreams::new(upstreams)),
            jobs,
            cache: Cache::new(CACHE),
            waiting: HashMap::new(),
            asked: JoinSet::new(),
        }
    }

    /// Runs until the queue's senders are gone.
    pub(crate) async fn run(mut self) {
        loop {
            tokio::select! {
                job = self.jobs.recv() => match job {
                    Some(job) => self.take(job),
                    None => return,
                },
                Some(done) = self.asked.join_next() => match done {
                    Ok((ask, response)) => self.finish(ask, response.as_deref()),
                    Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                    Err(_) => {}
                },
            }
        }
    }

    fn take(&mut self, job: Job) {
        let ask = Ask {
            name: job.question.name.clone(),
            kind: job.question.kind,
            dnssec_ok: job.question.client.dnssec_ok(),
            checking_disabled: job.question.client.checking_disabled(),
        };
        if let Some(response) = self.cache.get(&ask, Instant::now()) {
            return answer(&job, Some(&response));
        }
        if let Some(waiting) = self.waiting.get_mut(&ask) {
            if waiting.len() < MAX_WAITING {
                return waiting.push(job);
            }
        } else if self.waiting.len() < MAX_ASKED {
            let (ask, upstreams) = (Arc::new(ask), self.upstreams.clone());
            self.waiting.insert(ask.clone(), vec![job]);
            self.asked.spawn(async move {
                let response = upstreams.ask(&ask).await;
                (ask, response)
            });
            return;
        }
        answer(&job, None);
    }

    fn finish(&mut self, ask: Arc<Ask>, response: Option<&[u8]>) {
        for job in self.waiting.remove(&ask).into_iter().flatten() {
            answer(&job, response);
        }
        if let Some(response) = response {
            self.cache.put(ask, response, Instant::now());
        }
    }
}

fn answer(job: &Job, response: Option<&[u8]>) {
    let mut out = Vec::new();
    match response {
        Some(response) => reply(&job.question, response, &mut out),
        None => reply_unanswered(&job.question, &mut out),
    }
    job.reply_to.send(out);
}
