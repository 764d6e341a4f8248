//! Requests, and what became of them -> `/metrics`.
//!
//! Names, labels and buckets are kube-apiserver's, so that dashboards and alerts made for it show this server too.
//! Invariants: what is on its way is counted for exactly as long, whoever ends it; the number of series has a bound,
//! whatever kinds are defined.
//!
//! Source: Kubernetes' metrics reference, and `k8s.io/apiserver/pkg/endpoints/metrics`. Deliberately not here: what is
//! about parts that this server does not have (etcd, admission webhooks, FlowSchemas).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::Method;
use http_body_util::BodyExt;
use jiff::Timestamp;
use portolan_exposition::{Histogram, Page, write_process};
use portolan_kinds::{Catalog, Question};
use portolan_store::Store;
use tokio::time::Instant;

use crate::object;
use crate::respond::Reply;
use crate::route::{Route, Sub};

/// Requests of so many sorts are told apart. What comes later is counted by its verb alone.
const SORTS: usize = 8192;
const SECONDS: [f64; 23] = [
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0,
    45.0, 60.0,
];

/// What is told apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Sort {
    verb: &'static str,
    group: &'static str,
    version: &'static str,
    resource: &'static str,
    /// Of what is no resource, the path.
    subresource: &'static str,
    scope: &'static str,
    is_dry_run: bool,
}

impl Sort {
    /// `watches`, `applies` and `is_dry_run` as the request says of itself, whether that makes sense there or not.
    pub(crate) fn new(method: &Method, route: Option<&Route>, watches: bool, applies: bool, is_dry_run: bool) -> Self {
        let verb = match *method {
            Method::GET | Method::HEAD => "GET",
            Method::POST => "POST",
            Method::PUT => "PUT",
            Method::PATCH if applies => "APPLY",
            Method::PATCH => "PATCH",
            Method::DELETE => "DELETE",
            _ => "other",
        };
        let sort = Self { verb, is_dry_run, ..Self::default() };
        let target = match route {
            Some(Route::Object(target)) => target,
            Some(Route::Review(review, namespace)) => {
                let Question { group, plural: resource, .. } = *review.question();
                let scope = if namespace.is_some() { "namespace" } else { "cluster" };
                return Self { group, version: "v1", resource, scope, ..sort };
            }
            Some(route) => return Self { subresource: route.place(), ..sort },
            None => return sort,
        };
        let is_collection = target.name.is_none();
        let verb = match verb {
            _ if target.sub.is_session() || target.sub == Sub::Proxy => "CONNECT",
            "GET" if is_collection && watches => "WATCH",
            "GET" if is_collection => "LIST",
            "DELETE" if is_collection => "DELETECOLLECTION",
            verb => verb,
        };
        let scope = match (&target.namespace, verb) {
            _ if !is_collection || verb == "POST" => "resource",
            (Some(_), _) => "namespace",
            (None, _) => "cluster",
        };
        let kind = &target.kind;
        let subresource = target.sub.as_str();
        Self { verb, group: kind.group, version: kind.version, resource: kind.plural, subresource, scope, ..sort }
    }

    /// Whether it may take as long as the client likes.
    pub(crate) fn is_long(&self) -> bool {
        self.verb == "CONNECT" || self.is_stream()
    }

    /// Whether its answer goes on after it has begun.
    fn is_stream(&self) -> bool {
        matches!((self.verb, self.subresource), ("WATCH", _) | ("GET", "log"))
    }

    fn request_kind(&self) -> usize {
        usize::from(matches!(self.verb, "GET" | "LIST" | "WATCH"))
    }

    /// The labels of a long-running request, and whether it was a dry run.
    fn labels(&self) -> ([(&'static str, &'static str); 7], (&'static str, &'static str)) {
        let labels = [
            ("verb", self.verb),
            ("group", self.group),
            ("version", self.version),
            ("resource", self.resource),
            ("subresource", self.subresource),
            ("scope", self.scope),
            ("component", "apiserver"),
        ];
        (labels, ("dry_run", if self.is_dry_run { "All" } else { "" }))
    }
}

struct Requests {
    codes: BTreeMap<u16, u64>,
    took: Histogram,
    /// Long answers that are on their way.
    open: u64,
}

#[derive(Default)]
struct State {
    sorts: BTreeMap<Sort, Requests>,
    /// Those that change something, and those that do not.
    at_work: [u64; 2],
}

impl State {
    fn requests(&mut self, sort: Sort) -> &mut Requests {
        let has_room = self.sorts.len() < SORTS || self.sorts.contains_key(&sort);
        let sort = if has_room { sort } else { Sort { verb: sort.verb, ..Sort::default() } };
        let new = || Requests { codes: BTreeMap::new(), took: Histogram::new(SECONDS.into()), open: 0 };
        self.sorts.entry(sort).or_insert_with(new)
    }
}

pub(crate) struct Metrics {
    started: Timestamp,
    state: Mutex<State>,
}

impl Metrics {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { started: Timestamp::now(), state: Mutex::default() })
    }

    // A poisoned lock means a panic between two additions.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn begin(self: &Arc<Self>, sort: Sort) -> Counted {
        self.state().at_work[sort.request_kind()] += 1;
        Counted { metrics: self.clone(), sort, began: Instant::now() }
    }

    pub(crate) fn page(&self, store: &Store, catalog: &Catalog) -> String {
        let mut page = Page::default();
        self.write(&mut page);
        let name = "apiserver_resource_objects";
        page.family(name, "gauge", "Number of stored objects");
        // Events of both groups are the same objects.
        for kind in catalog.iter().filter(|kind| kind.group != "events.k8s.io") {
            let objects = store.count(&object::prefix(kind, None));
            page.count(name, &[("group", kind.group), ("resource", kind.plural)], objects as u64);
        }
        page.family("portolan_store_revision", "counter", "How many changes the store has taken");
        page.count("portolan_store_revision", &[], store.revision().0);
        page.family("portolan_build_info", "gauge", "Which build this is");
        page.count("portolan_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1);
        let started = Duration::try_from(self.started.duration_since(Timestamp::UNIX_EPOCH)).unwrap_or_default();
        page.family("process_start_time_seconds", "gauge", "Start time of the process since unix epoch in seconds");
        page.sample("process_start_time_seconds", &[], started.as_secs_f64());
        write_process(&mut page);
        page.into_text()
    }

    fn write(&self, page: &mut Page) {
        let state = self.state();
        page.family("apiserver_request_total", "counter", "Requests by what they asked for and the status they got");
        for (sort, requests) in &state.sorts {
            let (labels, dry_run) = sort.labels();
            for (code, count) in &requests.codes {
                let code = code.to_string();
                let labels: Vec<_> = labels.into_iter().chain([dry_run, ("code", &code)]).collect();
                page.count("apiserver_request_total", &labels, *count);
            }
        }
        page.family("apiserver_request_duration_seconds", "histogram", "How long requests took to be answered");
        for (sort, requests) in state.sorts.iter().filter(|(_, requests)| !requests.codes.is_empty()) {
            let (labels, dry_run) = sort.labels();
            let labels: Vec<_> = labels.into_iter().chain([dry_run]).collect();
            page.histogram("apiserver_request_duration_seconds", &labels, &requests.took);
        }
        page.family("apiserver_longrunning_requests", "gauge", "Watches and logs that are being followed");
        for (sort, requests) in state.sorts.iter().filter(|(sort, _)| sort.is_stream()) {
            page.count("apiserver_longrunning_requests", &sort.labels().0, requests.open);
        }
        page.family("apiserver_current_inflight_requests", "gauge", "Requests that are not answered yet");
        for (kind, at_work) in ["mutating", "readOnly"].into_iter().zip(state.at_work) {
            page.count("apiserver_current_inflight_requests", &[("request_kind", kind)], at_work);
        }
    }
}

/// A request that is being answered.
pub(crate) struct Counted {
    metrics: Arc<Metrics>,
    sort: Sort,
    began: Instant,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.metrics.state().at_work[self.sort.request_kind()] -= 1;
    }
}

impl Counted {
    /// The answer, which counts as on its way until the client has it all or goes away, if it is a long one.
    pub(crate) fn answered(self, reply: Reply) -> Reply {
        let code = reply.status().as_u16();
        if !(self.sort.is_stream() && reply.status().is_success()) {
            let mut state = self.metrics.state();
            let requests = state.requests(self.sort);
            *requests.codes.entry(code).or_default() += 1;
            requests.took.observe(self.began.elapsed().as_secs_f64());
            drop(state);
            return reply;
        }
        self.metrics.state().requests(self.sort).open += 1;
        let open = Open { metrics: self.metrics.clone(), sort: self.sort, began: self.began, code };
        reply.map(|body| {
            let held = move |frame| {
                let _ = &open;
                frame
            };
            body.map_frame(held).boxed_unsync()
        })
    }
}

struct Open {
    metrics: Arc<Metrics>,
    sort: Sort,
    began: Instant,
    code: u16,
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut state = self.metrics.state();
        let requests = state.requests(self.sort);
        requests.open = requests.open.saturating_sub(1);
        *requests.codes.entry(self.code).or_default() += 1;
        requests.took.observe(self.began.elapsed().as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::{respond, route};

    fn sort(method: &Method, path: &str, watches: bool) -> Sort {
        Sort::new(method, route::parse(path, &Catalog::default()).ok().as_ref(), watches, false, false)
    }

    #[test]
    fn sorts() {
        for (method, path, watches, expected) in [
            (Method::GET, "/api/v1/pods", false, ["LIST", "", "v1", "pods", "", "cluster"]),
            (Method::GET, "/api/v1/namespaces/a/pods", true, ["WATCH", "", "v1", "pods", "", "namespace"]),
            (Method::GET, "/api/v1/namespaces/a/pods/b", true, ["GET", "", "v1", "pods", "", "resource"]),
            (Method::HEAD, "/api/v1/namespaces/a/pods/b", false, ["GET", "", "v1", "pods", "", "resource"]),
            (Method::POST, "/api/v1/namespaces/a/pods", false, ["POST", "", "v1", "pods", "", "resource"]),
            (
                Method::PUT,
                "/apis/apps/v1/namespaces/a/deployments/b/status",
                false,
                ["PUT", "apps", "v1", "deployments", "status", "resource"],
            ),
            (Method::DELETE, "/api/v1/nodes", false, ["DELETECOLLECTION", "", "v1", "nodes", "", "cluster"]),
            (Method::GET, "/api/v1/namespaces/a/pods/b/exec", false, ["CONNECT", "", "v1", "pods", "exec", "resource"]),
            (Method::GET, "/version", false, ["GET", "", "", "", "/version", ""]),
            (Method::GET, "/nothing", false, ["GET", "", "", "", "", ""]),
            (
                Method::POST,
                "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
                false,
                ["POST", "authorization.k8s.io", "v1", "selfsubjectaccessreviews", "", "cluster"],
            ),
        ] {
            let sort = sort(&method, path, watches);
            let Sort { verb, group, version, resource, subresource, scope, .. } = sort;
            assert_eq!([verb, group, version, resource, subresource, scope], expected, "{method} {path}");
        }
    }

    fn lines(metrics: &Metrics) -> String {
        let mut page = Page::default();
        metrics.write(&mut page);
        let text = page.into_text();
        let kept = text.lines().filter(|line| !line.starts_with('#') && !line.contains("_bucket{"));
        kept.filter(|line| !line.contains("_sum{")).map(|line| format!("{line}\n")).collect()
    }

    #[test]
    fn a_watch_is_counted_for_as_long_as_it_is_read() {
        let metrics = Metrics::new();
        let list = metrics.begin(sort(&Method::GET, "/api/v1/nodes", false));
        let watch = metrics.begin(sort(&Method::GET, "/api/v1/nodes", true));
        let reply = watch.answered(respond::typed("application/json", "{}"));
        expect![[r#"
            apiserver_longrunning_requests{verb="WATCH",group="",version="v1",resource="nodes",subresource="",scope="cluster",component="apiserver"} 1
            apiserver_current_inflight_requests{request_kind="mutating"} 0
            apiserver_current_inflight_requests{request_kind="readOnly"} 1
        "#]]
        .assert_eq(&lines(&metrics));
        drop((list.answered(respond::typed("application/json", "{}")), reply));
        // The client went away before there was an answer.
        drop(metrics.begin(sort(&Method::DELETE, "/api/v1/nodes/a", false)));
        expect![[r#"
            apiserver_request_total{verb="LIST",group="",version="v1",resource="nodes",subresource="",scope="cluster",component="apiserver",dry_run="",code="200"} 1
            apiserver_request_total{verb="WATCH",group="",version="v1",resource="nodes",subresource="",scope="cluster",component="apiserver",dry_run="",code="200"} 1
            apiserver_request_duration_seconds_count{verb="LIST",group="",version="v1",resource="nodes",subresource="",scope="cluster",component="apiserver",dry_run=""} 1
            apiserver_request_duration_seconds_count{verb="WATCH",group="",version="v1",resource="nodes",subresource="",scope="cluster",component="apiserver",dry_run=""} 1
            apiserver_longrunning_requests{verb="WATCH",group="",version="v1",resource="nodes",subresource="",scope="cluster",component="apiserver"} 0
            apiserver_current_inflight_requests{request_kind="mutating"} 0
            apiserver_current_inflight_requests{request_kind="readOnly"} 0
        "#]]
        .assert_eq(&lines(&metrics));
    }

    #[test]
    fn the_number_of_series_has_a_bound() {
        let metrics = Metrics::new();
        let nodes = sort(&Method::GET, "/api/v1/nodes", false);
        let names: Vec<&'static str> = (0..SORTS + 3).map(|index| &*index.to_string().leak()).collect();
        for group in names {
            drop(metrics.begin(Sort { group, ..nodes }).answered(respond::typed("text/plain", "")));
        }
        assert_eq!(metrics.state().sorts.len(), SORTS + 1);
        let rest = "apiserver_request_total{verb=\"LIST\",group=\"\",version=\"\",resource=\"\",";
        let text = lines(&metrics);
        let line = text.lines().find(|line| line.starts_with(rest)).unwrap();
        assert!(line.ends_with(" 3"), "{line}");
    }
}
