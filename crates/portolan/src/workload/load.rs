//! A URL and a rate -> requests at that rate, whatever the answers do, and what became of them.
//!
//! Invariants: the load is open (a slow backend does not slow the client down, up to the bound on requests in flight,
//! beyond which what is not sent is counted); every request is resolved and connected anew; each printed line covers
//! the time since the one before, without gaps, so that lines add up.
//!
//! Deliberately not here: retries. The point is to see failures.

use std::future::Future;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use bytes::Bytes;
use http::StatusCode;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use super::fetch::Target;
use super::figures::{Failure, Figures, Recorder};
use super::server::{self, Pod};
use super::{Stop, any_address, duration, resize};

/// Between tries while waiting for the first answer.
const FIRST_ANSWER_PAUSE: Duration = Duration::from_millis(20);

#[derive(Debug, clap::Args)]
pub(super) struct LoadArgs {
    /// What to request, as in http://image-backend.default.svc.cluster.local/resize?width=64&height=48
    #[arg(long)]
    target: String,
    /// Requests per second, as in 100 or 100/s.
    #[arg(long, default_value = "100/s", value_parser = rate)]
    rate: f64,
    /// At most this many requests in flight.
    #[arg(long, default_value_t = 64)]
    concurrency: usize,
    /// Stop after this long; without it, at SIGTERM.
    #[arg(long, value_parser = duration)]
    duration: Option<Duration>,
    /// Stop after this many requests.
    #[arg(long)]
    requests: Option<u64>,
    /// POST a picture of this size rather than GET.
    #[arg(long, value_name = "WIDTHxHEIGHT", value_parser = picture)]
    picture: Option<(u32, u32)>,
    #[arg(long, default_value = "500ms", value_parser = duration)]
    connect_timeout: Duration,
    #[arg(long, default_value = "1s", value_parser = duration)]
    timeout: Duration,
    /// Before anything is counted, ask again and again, for at most this long, until there is a first answer.
    #[arg(long, value_parser = duration)]
    await_first: Option<Duration>,
    #[arg(long, default_value = "1s", value_parser = duration)]
    report_every: Duration,
    /// Serve the figures since the start at /stats on this port.
    #[arg(long)]
    stats_port: Option<u16>,
    #[arg(long, default_value = "/etc/resolv.conf")]
    resolv_conf: PathBuf,
}

fn rate(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix("/s").unwrap_or(text);
    match number.parse::<f64>() {
        Ok(rate) if (0.01..=100_000.0).contains(&rate) => Ok(rate),
        _ => Err(format!("`{text}` is not a rate; write it like 100/s, from 0.01/s to 100000/s")),
    }
}

fn picture(text: &str) -> Result<(u32, u32), String> {
    let sides = text.split_once('x').and_then(|(width, height)| Some((width.parse().ok()?, height.parse().ok()?)));
    sides.ok_or_else(|| format!("`{text}` is not a size; write it like 96x72"))
}

pub(super) async fn run(args: LoadArgs) -> anyhow::Result<ExitCode> {
    let mut stop = Stop::new()?;
    let stop = async move { stop.wait().await };
    let answered = run_until(args, stop, &mut std::io::stdout()).await?.answered;
    Ok(if answered > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The figures of everything that was sent before the work was done or `stop` came.
async fn run_until(args: LoadArgs, stop: impl Future<Output = ()>, output: &mut impl Write) -> anyhow::Result<Figures> {
    let mut target = Target::parse(&args.target, args.connect_timeout, args.timeout)?;
    target.resolv_conf.clone_from(&args.resolv_conf);
    if let Some((width, height)) = args.picture {
        let png = resize::sample_png(width, height).map_err(anyhow::Error::msg)?;
        target.body = Some(Bytes::from(png));
    }
    let total = Arc::new(Mutex::new(Recorder::new(now_ms())));
    let stats = serve_stats(args.stats_port, total.clone());
    let mut load = Load {
        target: Arc::new(target),
        in_flight: JoinSet::new(),
        lately: Recorder::new(now_ms()),
        total: total.clone(),
        first_answer_after: None,
    };
    let mut stop = std::pin::pin!(stop);
    tokio::select! {
        ended = load.send(&args, output) => ended?,
        () = &mut stop => (),
        failed = stats => failed?,
    }
    load.finish(output).await
}

struct Load {
    target: Arc<Target>,
    in_flight: JoinSet<Outcome>,
    /// Since the last line.
    lately: Recorder,
    total: Arc<Mutex<Recorder>>,
    first_answer_after: Option<Duration>,
}

struct Outcome {
    began_ms: u64,
    latency: Duration,
    /// Who answered, or why nobody did.
    result: Result<String, String>,
}

impl Load {
    async fn send(&mut self, args: &LoadArgs, output: &mut impl Write) -> anyhow::Result<()> {
        if let Some(patience) = args.await_first {
            self.await_first(patience).await?;
        }
        self.lately = Recorder::new(now_ms());
        *lock(&self.total) = Recorder::new(now_ms());
        let mut pace = interval(Duration::from_secs_f64(1.0 / args.rate));
        pace.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let mut report = interval(args.report_every);
        report.set_missed_tick_behavior(MissedTickBehavior::Delay);
        report.reset();
        let end = tokio::time::sleep(args.duration.unwrap_or(Duration::MAX));
        let mut end = std::pin::pin!(end);
        let mut left = args.requests.unwrap_or(u64::MAX);
        while left > 0 || !self.in_flight.is_empty() {
            tokio::select! {
                () = &mut end => return Ok(()),
                _ = pace.tick(), if left > 0 => {
                    if self.in_flight.len() < args.concurrency {
                        left -= 1;
                        self.start();
                    } else {
                        self.lately.skipped();
                        lock(&self.total).skipped();
                    }
                }
                Some(outcome) = self.in_flight.join_next() => self.record(outcome.context("a request panicked")?),
                _ = report.tick() => {
                    let figures = self.lately.take(now_ms());
                    self.print(&figures, output);
                }
            }
        }
        Ok(())
    }

    async fn await_first(&mut self, patience: Duration) -> anyhow::Result<()> {
        let began = Instant::now();
        loop {
            match self.target.fetch().await {
                Ok(_) => {
                    self.first_answer_after = Some(began.elapsed());
                    return Ok(());
                }
                Err(error) if began.elapsed() >= patience => {
                    return Err(error).with_context(|| format!("no answer within {patience:?}"));
                }
                Err(_) => tokio::time::sleep(FIRST_ANSWER_PAUSE).await,
            }
        }
    }

    fn start(&mut self) {
        let target = self.target.clone();
        self.in_flight.spawn(async move {
            let (began_ms, began) = (now_ms(), Instant::now());
            let result = target.fetch().await;
            Outcome {
                began_ms,
                latency: began.elapsed(),
                result: result.map(|answer| answer.backend).map_err(|error| error.to_string()),
            }
        });
    }

    fn record(&mut self, outcome: Outcome) {
        let Outcome { began_ms, latency, result } = outcome;
        let ended_ms = now_ms();
        let mut total = lock(&self.total);
        for recorder in [&mut self.lately, &mut *total] {
            match &result {
                Ok(backend) => recorder.answered(backend, latency, ended_ms),
                Err(reason) => recorder.failed(Failure { began_ms, ended_ms, reason: reason.clone() }),
            }
        }
    }

    /// Waits for what is in flight (bounded by the requests' own timeout), then prints the rest and the summary.
    async fn finish(mut self, output: &mut impl Write) -> anyhow::Result<Figures> {
        while let Some(outcome) = self.in_flight.join_next().await {
            self.record(outcome.context("a request panicked")?);
        }
        let rest = self.lately.take(now_ms());
        self.print(&rest, output);
        let mut summary = lock(&self.total).figures(now_ms());
        summary.summary = true;
        self.print(&summary, output);
        Ok(summary)
    }

    /// Nobody reading is no reason to stop.
    fn print(&self, figures: &Figures, output: &mut impl Write) {
        let first_answer_after_ms = self.first_answer_after.and_then(|time| u64::try_from(time.as_millis()).ok());
        let figures = Figures { first_answer_after_ms, ..figures.clone() };
        if let Ok(line) = serde_json::to_string(&figures) {
            let _ = writeln!(output, "{line}");
        }
    }
}

/// Serves the figures since the start; never ends by itself, but with the reason when it cannot begin.
async fn serve_stats(port: Option<u16>, total: Arc<Mutex<Recorder>>) -> anyhow::Result<()> {
    let Some(port) = port else { return std::future::pending().await };
    let listener = server::listen(&any_address(port)).await?;
    let stats = move |request: hyper::Request<hyper::body::Incoming>, _: SocketAddr| {
        let figures = lock(&total).figures(now_ms());
        async move {
            match request.uri().path() {
                "/stats" => server::json(&figures),
                "/healthz" | "/readyz" => server::text(StatusCode::OK, "ok\n"),
                path => server::not_found(path),
            }
        }
    };
    server::serve(listener, Pod::here(), Duration::ZERO, stats, std::future::pending()).await;
    Ok(())
}

fn lock(recorder: &Mutex<Recorder>) -> std::sync::MutexGuard<'_, Recorder> {
    recorder.lock().unwrap_or_else(PoisonError::into_inner)
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use tokio::net::TcpListener;

    use super::*;
    use crate::workload::serve;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        load: LoadArgs,
    }

    /// Runs the load against a server of its own; gives every line printed, the summary last.
    async fn run_against(path: &str, args: &str) -> Vec<Figures> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = format!("http://{}{path}", listener.local_addr().unwrap());
        let words = ["load", "--target", &target].into_iter().chain(args.split_whitespace());
        let args = Line::try_parse_from(words).unwrap().load;
        let pod = Pod::new("backend-1".into());
        let routes = pod.clone();
        let handler = move |request, peer| {
            let pod = routes.clone();
            async move { serve::answer(&pod, &request, peer).await }
        };
        let mut output = Vec::new();
        tokio::select! {
            () = server::serve(listener, pod, Duration::ZERO, handler, std::future::pending()) => (),
            ended = run_until(args, std::future::pending(), &mut output) => drop(ended.unwrap()),
        }
        String::from_utf8(output).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[tokio::test]
    async fn every_request_is_in_exactly_one_line() {
        let mut lines = run_against("/", "--requests 60 --rate 600 --report-every 20ms --await-first 5s").await;
        let summary = lines.pop().unwrap();
        assert!(summary.summary && lines.len() > 1, "{lines:?}");
        assert_eq!((summary.answered, summary.failed), (60, 0), "{:?}", summary.failures);
        assert_eq!(summary.backends["backend-1"].answered, 60);
        assert!(summary.p50_us > 0 && summary.first_answer_after_ms.is_some());
        let mut sum = Figures::default();
        for (line, next) in lines.iter().zip(lines.iter().skip(1)) {
            assert_eq!(line.until_ms, next.from_ms);
        }
        lines.iter().for_each(|line| sum.add(line));
        assert_eq!((sum.answered, &sum.backends), (60, &summary.backends));
    }

    #[tokio::test]
    async fn a_slow_backend_does_not_slow_the_load() {
        let lines = run_against("/slow?ms=150", "--duration 300ms --rate 100 --concurrency 3").await;
        let summary = lines.last().unwrap();
        assert!((3..=9).contains(&summary.answered) && summary.skipped >= 15, "{summary:?}");
    }

    #[tokio::test]
    async fn failures_are_told_with_time_and_reason() {
        let lines = run_against("/lost", "--requests 5 --rate 500").await;
        let summary = lines.last().unwrap();
        assert_eq!((summary.answered, summary.failed, summary.failures.len()), (0, 5, 5));
        let failure = &summary.failures[0];
        assert!(failure.reason.starts_with("backend-1 answered 404"), "{}", failure.reason);
        assert!(failure.began_ms >= summary.from_ms && failure.ended_ms <= summary.until_ms);
        assert_eq!(summary.last_failure_ms, summary.failures.last().map(|failure| failure.ended_ms));
    }

    #[test]
    fn rates_and_sizes_are_read_or_refused() {
        assert_eq!((rate("100/s"), rate("0.5"), picture("96x72")), (Ok(100.0), Ok(0.5), Ok((96, 72))));
        for bad in ["", "x", "0", "-1", "inf", "NaN", "100/m"] {
            assert!(rate(bad).is_err(), "{bad}");
        }
        assert!(picture("96").is_err() && picture("x").is_err());
    }
}
