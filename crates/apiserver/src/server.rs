//! One request -> one reply: who asks, may they, what for, and whose job it is.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, HeaderName, IF_NONE_MATCH, USER_AGENT};
use http::request::Parts;
use http::{Method, Request};
use hyper::body::Incoming;
use portolan_kinds::{Catalog, FieldValidation, Question, Status};
use portolan_store::Store;
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::accept::{self, Discovery, Media, View};
use crate::allocate::Allocator;
use crate::authz::{Authorizer, Request as Access};
use crate::backup::Backup;
use crate::body::{self, Budget, Unread};
use crate::convert::Conversions;
use crate::custom::Kinds;
use crate::documents::Documents;
use crate::listen::Standing;
use crate::listing::Pieces;
use crate::metrics::{Metrics, Sort};
use crate::nodes::Nodes;
use crate::options::{Manner, Options};
use crate::respond::{self, Reply};
use crate::route::{self, Route, Sub, Target};
use crate::tokens::{self, Tokens};
use crate::turns::{self, Admission};
use crate::user::User;
use crate::verb;
use crate::warnings::Warnings;
use crate::ways::{self, Ways};
use crate::write::{Asked, Written};
use crate::{apply, delete, discovery, health, patch, pods, proxy, read, scale, sending, sessions, show, watch, write};

/// Where a backup is read. No path of Kubernetes'.
const BACKUP: &str = "/backup";
/// So many bytes of a body make a write count once more.
const BODY_COST: u64 = 16 << 10;

pub(crate) struct Server {
    pub(crate) store: Store,
    data_dir: PathBuf,
    pub(crate) services: Arc<Allocator>,
    pub(crate) nodes: Nodes,
    pub(crate) kinds: Kinds,
    pub(crate) access: Authorizer,
    pub(crate) tokens: Tokens,
    /// Writes, which go on when their client goes away: what was allocated for one must not be forgotten half-way.
    pub(crate) tasks: TaskTracker,
    pub(crate) admission: Admission,
    pub(crate) ways: Ways,
    pub(crate) conversions: Conversions,
    documents: Documents,
    metrics: Arc<Metrics>,
    budget: Budget,
    address: String,
}

/// What a connection knows about all its requests.
pub(crate) struct Peer {
    /// `None` without a client certificate.
    pub(crate) user: Option<User>,
    pub(crate) source: IpAddr,
    pub(crate) standing: Standing,
    pub(crate) shutdown: CancellationToken,
}

fn header(parts: &Parts, name: HeaderName) -> &str {
    parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

impl Server {
    pub(crate) fn new(
        store: Store,
        data_dir: PathBuf,
        services: Arc<Allocator>,
        nodes: Nodes,
        tokens: Tokens,
        address: String,
    ) -> Self {
        Self {
            access: Authorizer::new(&store),
            store,
            data_dir,
            services,
            nodes,
            kinds: Kinds::new(),
            tokens,
            tasks: TaskTracker::new(),
            admission: Admission::new(),
            ways: Ways::new(),
            conversions: Conversions::new(),
            documents: Documents::default(),
            metrics: Metrics::new(),
            budget: Budget::new(),
            address,
        }
    }

    pub(crate) async fn handle(self: Arc<Self>, request: Request<Incoming>, peer: Arc<Peer>) -> Reply {
        let (mut parts, body) = request.into_parts();
        if let Some(uri) = route::unwatched(&parts.method, &parts.uri) {
            parts.uri = uri;
        }
        // Of what has no form but its own, errors above all. Who takes none of that gets JSON all the same.
        let media = accept::whole(header(&parts, ACCEPT));
        let of_failures = *media.as_ref().unwrap_or(&Media::Json);
        let mut body = Unread::new(&parts, body);
        let reply = self.answer(parts, &mut body, &peer, media).await;
        body.drain().await;
        reply.unwrap_or_else(|status| respond::failure(of_failures, &status))
    }

    async fn answer(
        self: Arc<Self>,
        parts: Parts,
        body: &mut Unread,
        peer: &Peer,
        media: Result<Media, Status>,
    ) -> Result<Reply, Status> {
        let user = self.authenticate(&parts, peer)?;
        let path = parts.uri.path();
        // Whoever asks whether the server is well may know.
        if health::is_public(path) {
            return Self::health(&parts, peer);
        }
        if user != User::anonymous() {
            peer.standing.is_users(&user.name);
        }
        // Work is shared out between who really asks.
        let asker = user.name.clone();
        let user = self.access.impersonated(user, &parts.headers)?;
        let catalog = self.kinds.now();
        let route = route::parse(path, &catalog);
        let manner = Manner::parse(parts.uri.query().unwrap_or_default());
        let applies = body::media_type(&parts) == apply::MEDIA_TYPE;
        let sort = Sort::new(&parts.method, route.as_ref().ok(), manner.watches, applies, manner.is_dry_run);
        let counted = self.metrics.begin(sort);
        let of_failures = media.as_ref().copied().unwrap_or_default();
        let reply = if sort.is_long() {
            self.carry_out(&asker, user, route, &catalog, parts, body, peer, media).await
        } else {
            let patience = manner.patience();
            let reply = async {
                let patience = patience?;
                let reply = self.carry_out(&asker, user, route, &catalog, parts, body, peer, media);
                let late = |_| Status::timeout("request did not complete within the allotted timeout", 0);
                tokio::time::timeout(patience, reply).await.map_err(late)?
            };
            reply.await
        };
        Ok(counted.answered(reply.unwrap_or_else(|status| respond::failure(of_failures, &status))))
    }

    #[expect(clippy::too_many_arguments, reason = "what a request is made of")]
    async fn carry_out(
        self: Arc<Self>,
        asker: &str,
        user: User,
        route: Result<Route, Status>,
        catalog: &Arc<Catalog>,
        parts: Parts,
        body: &mut Unread,
        peer: &Peer,
        media: Result<Media, Status>,
    ) -> Result<Reply, Status> {
        let path = parts.uri.path();
        match route {
            Ok(Route::Object(target)) => {
                let kind = target.kind.clone();
                let warnings = Arc::new(Warnings::default());
                warnings.add(kind.deprecation().map(str::to_owned));
                let answer = self.object((asker, user), target, parts, body, peer, &warnings).await;
                // Who asks for what is not there is told as well.
                let mut reply = answer.unwrap_or_else(|status| respond::failure(media.unwrap_or_default(), &status));
                respond::warn(&mut reply, &warnings.take());
                Ok(reply)
            }
            Ok(Route::Review(review, namespace)) => {
                let Question { group, plural: resource, .. } = *review.question();
                let namespace = namespace.unwrap_or_default();
                let request = Access { verb: "create", group, resource, namespace: &namespace, ..Access::default() };
                self.access.authorize(&user, &request)?;
                if parts.method != Method::POST {
                    return Err(Status::method_not_allowed());
                }
                let (media, options) = (media?, Options::parse(parts.uri.query().unwrap_or_default())?);
                options.check_write("CreateOptions")?;
                let bytes = body::read(&parts, body, &self.budget).await?;
                let (asked, repeated) = body::object(&body::media_type(&parts), &bytes)?;
                let warnings = Warnings::default();
                if options.field_validation == FieldValidation::Warn {
                    warnings.add(repeated.lines);
                }
                let answer = review.answer(&self, (&user, &namespace), asked, (options.field_validation, &warnings));
                let mut reply = match answer {
                    Ok(answer) => respond::object(201, media, &answer),
                    Err(status) => respond::failure(media, &status),
                };
                respond::warn(&mut reply, &warnings.take());
                Ok(reply)
            }
            route => {
                // Strangers learn not even what exists.
                let verb = parts.method.as_str().to_ascii_lowercase();
                match route::unknown(path).filter(|_| route.is_err()) {
                    Some(target) => self.access.authorize(&user, &target.request(&parts.method))?,
                    None => self.access.authorize(&user, &Access::path(&verb, path))?,
                }
                if !matches!(parts.method, Method::GET | Method::HEAD) {
                    return Err(Status::unknown_resource());
                }
                if path == BACKUP {
                    let everything = Access { verb: "*", group: "*", resource: "*", ..Access::default() };
                    self.access.authorize(&user, &everything)?;
                    return self.backup(asker).await;
                }
                match route? {
                    Route::Health => Self::health(&parts, peer),
                    route => self.document(catalog, route, &parts, media.unwrap_or_default()).await,
                }
            }
        }
    }

    fn health(parts: &Parts, peer: &Peer) -> Result<Reply, Status> {
        let query = parts.uri.query().unwrap_or_default();
        let (code, text) = health::answer(parts.uri.path(), query, peer.shutdown.is_cancelled())?;
        Ok(respond::text(code, text))
    }

    /// By the connection's certificate, or else by a token; nobody in particular without either.
    ///
    /// # Errors
    /// 401 for a token that is no good.
    fn authenticate(&self, parts: &Parts, peer: &Peer) -> Result<User, Status> {
        if let Some(user) = &peer.user {
            return Ok(user.clone());
        }
        let mut words = header(parts, AUTHORIZATION).trim().splitn(3, ' ');
        let bearer = words.next().is_some_and(|scheme| scheme.eq_ignore_ascii_case("bearer"));
        let Some(token) = words.next().filter(|token| bearer && !token.is_empty()) else {
            return Ok(User::anonymous());
        };
        let now = jiff::Timestamp::now().as_second();
        match self.tokens.authenticate(&self.store, token, &self.tokens.audiences(), now) {
            Ok(authenticated) => Ok(authenticated.user),
            Err(why) => {
                tracing::debug!(%why, "refused a token");
                Err(Status::unauthorized())
            }
        }
    }

    /// Everything, as of now. It holds the cluster's own keys, so it is for who may do everything.
    async fn backup(self: &Arc<Self>, asker: &str) -> Result<Reply, Status> {
        let mut backup = Backup::new(&self.store, &self.data_dir).map_err(Status::internal)?;
        let turn = self.admission.pieces.request(asker, 1).await?;
        let first = backup.piece();
        drop(turn);
        Ok(respond::stream("application/gzip", sending::body(self, asker, first, backup, true)?))
    }

    /// What the server says about itself.
    async fn document(
        &self,
        catalog: &Arc<Catalog>,
        route: Route,
        parts: &Parts,
        media: Media,
    ) -> Result<Reply, Status> {
        let (accept, query) = (header(parts, ACCEPT), parts.uri.query().unwrap_or_default());
        let core = route == Route::CoreVersions;
        Ok(match route {
            Route::CoreVersions | Route::Groups => match accept::discovery(accept) {
                Discovery::Plain if core => respond::object(200, media, &discovery::core_versions(&self.address)),
                Discovery::Plain => respond::object(200, media, &discovery::group_list(catalog)),
                form => {
                    let content_type = match form {
                        Discovery::AggregatedV2Beta1 => {
                            "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList"
                        }
                        _ => "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
                    };
                    let document = discovery::aggregated(catalog, core, form).to_string();
                    respond::unless_known(content_type, document, header(parts, IF_NONE_MATCH))
                }
            },
            Route::Index => respond::value(200, &discovery::index(catalog)),
            Route::Group(name) => {
                respond::object(200, media, &discovery::group(catalog, &name).ok_or_else(Status::unknown_resource)?)
            }
            Route::Resources { group, version } => {
                respond::object(200, media, &discovery::resources(catalog, &group, &version))
            }
            Route::OpenApiV2 => self.documents.v2(catalog, &parts.headers).await?,
            Route::OpenApiV3Index => {
                let index = self.documents.index(catalog).await?.to_json().to_string();
                respond::unless_known("application/json", index, header(parts, IF_NONE_MATCH))
            }
            Route::OpenApiV3(path) => self.documents.v3(catalog, path, query, &parts.headers).await?,
            Route::Metrics => respond::typed(portolan_exposition::MEDIA_TYPE, self.metrics.page(&self.store, catalog)),
            Route::Version => respond::value(200, &discovery::version()),
            Route::Issuer => respond::value(200, &self.tokens.configuration()),
            Route::Keys => respond::typed("application/jwk-set+json", self.tokens.keys().to_string()),
            Route::Health | Route::Review(..) | Route::Object(_) => return Err(Status::unknown_resource()),
        })
    }

    async fn object(
        self: Arc<Self>,
        (asker, user): (&str, User),
        target: Target,
        parts: Parts,
        body: &mut Unread,
        peer: &Peer,
        warnings: &Arc<Warnings>,
    ) -> Result<Reply, Status> {
        // What is asked of others has its own query.
        let query = parts.uri.query().filter(|_| !(target.sub.is_session() || target.sub == Sub::Proxy));
        let asked = Options::parse(query.unwrap_or_default());
        let asked = asked.and_then(|options| Ok((verb::of(&parts.method, &target, &options)?, options)));
        let (verb, mut options) = match asked {
            Ok(asked) => asked,
            Err(status) => {
                // Of what is wrong with a request only those hear who may make one like it.
                if let Some(like) = route::unknown(parts.uri.path()) {
                    self.access.authorize(&user, &like.request(&parts.method))?;
                }
                return Err(status);
            }
        };
        options.take_user_agent(header(&parts, USER_AGENT));
        let (one, node_name) = verb::selected(verb, &target, &options);
        let name = target.name.as_deref().or(one.as_deref()).unwrap_or_default();
        // As upstream: reading a namespace counts as reading in it.
        let namespace = match target.namespace.as_deref() {
            None if target.kind.group.is_empty() && target.kind.plural == "namespaces" => name,
            other => other.unwrap_or_default(),
        };
        // Browsers can only get sessions, but it is the same thing that they get.
        let verbs = if target.sub.is_session() { [verb, "create"] } else { [verb, verb] };
        for verb in verbs {
            let asked = Access {
                verb,
                group: target.kind.group,
                resource: target.kind.plural,
                subresource: target.sub.as_str(),
                namespace,
                name,
                node_name: node_name.as_deref().unwrap_or_default(),
                path: "",
            };
            self.access.authorize(&user, &asked)?;
        }
        if target.sub.is_session() || target.sub == Sub::Log && ways::is_websocket(&parts.headers) {
            return sessions::open(&self, &user, &target, parts, peer).await;
        }
        if target.sub == Sub::Proxy {
            return proxy::forward(&self, &user, &target, parts, body, peer).await;
        }
        // A Scale is the program's own, whatever it is a scale of.
        let own = !target.kind.is_custom() || target.sub == Sub::Scale;
        let view = accept::view(header(&parts, ACCEPT), options.include_object, own);
        match (verb, target.sub) {
            ("watch", _) => {
                let view = accept::watched(view?)?;
                return watch::watch(&self, asker, &target, &options, view, peer.shutdown.clone()).await;
            }
            ("get", Sub::Log) => {
                let asked = Asked { user: &user, target: &target, options: &options, warnings };
                return pods::logs(&self, asked, parts.uri.query().unwrap_or_default()).await;
            }
            ("get", Sub::Scale) => {
                let asked = Asked { user: &user, target: &target, options: &options, warnings };
                let scale = scale::get(&self, asked).await?;
                return Ok(respond::object(200, view?.media, &scale));
            }
            ("get", _) => return read::get(&self, &target, &options, view?).await,
            ("list", _) => {
                let accept_encoding = header(&parts, ACCEPT_ENCODING);
                return read::list(&self, asker, &target, &options, view?, accept_encoding).await;
            }
            _ => {}
        }
        let view = view?;
        // Before its turn: who sends slowly must not keep others from theirs.
        let bytes = body::read(&parts, body, &self.budget).await?;
        let media = body::media_type(&parts);
        if matches!(verb, "delete" | "deletecollection") {
            match bytes.is_empty() {
                true => options.take_delete_query()?,
                false => options.take_delete_body(&body::decode(&media, &bytes)?)?,
            }
        }
        let lane = target.kind.webhook().map(|webhook| self.conversions.lane(webhook));
        let turns = match &lane {
            Some(lane) => &lane.writes,
            None if turns::is_vital(&user, &target) => &self.admission.vital,
            None => &self.admission.writes,
        };
        let turn = turns.request(asker, 1 + bytes.len() as u64 / BODY_COST).await?;
        let (server, warnings) = (self.clone(), warnings.clone());
        let write = async move {
            let asked = Asked { user: &user, target: &target, options: &options, warnings: &warnings };
            let reply = server.write(asked, verb, view, &media, bytes).await;
            drop(turn);
            reply
        };
        match self.tasks.spawn(write).await {
            Ok(reply) => reply,
            Err(_) => Err(Status::internal("the request was not carried out to its end")),
        }
    }

    async fn write(
        &self,
        asked: Asked<'_>,
        verb: &str,
        view: View,
        media: &str,
        bytes: Bytes,
    ) -> Result<Reply, Status> {
        let Asked { target, options, .. } = asked;
        let (body, repeated) = match verb {
            "create" | "update" => body::object(media, &bytes)?,
            _ => Default::default(),
        };
        target.kind.refuse_repeated(&body, &repeated.mistakes(), options.field_validation)?;
        if options.field_validation == FieldValidation::Warn {
            asked.warnings.add(repeated.lines);
        }
        let shown = |written: Written| {
            let code = if written.created { 201 } else { 200 };
            respond::bytes(code, view.media, show::one(&target.kind, &written.seen, view))
        };
        let done = |code| move |done: Value| respond::object(code, view.media, &done);
        let applies = media == apply::MEDIA_TYPE;
        match verb {
            "create" => options.check_write("CreateOptions")?,
            "update" => options.check_write("UpdateOptions")?,
            "patch" => options.check_patch(applies)?,
            _ => {}
        }
        match (verb, target.sub) {
            ("create", Sub::None) => write::create(self, asked, body).await.map(shown),
            ("create", Sub::Binding) => pods::bind(self, asked, &body).await.map(done(201)),
            ("create", Sub::Eviction) => pods::evict(self, asked, body).await.map(done(201)),
            ("create", Sub::Token) => tokens::request(self, asked, body).map(done(201)),
            ("update", Sub::Scale) => scale::update(self, asked, &body).await.map(done(200)),
            ("update", _) => write::update(self, asked, body).await.map(shown),
            ("patch", Sub::Scale) if applies => scale::apply(self, asked, &bytes).await.map(done(200)),
            ("patch", _) if applies => apply::apply(self, asked, &bytes).await.map(shown),
            ("patch", Sub::Scale) => scale::patch(self, asked, media, &bytes).await.map(done(200)),
            ("patch", _) => patch::patch(self, asked, media, &bytes).await.map(shown),
            ("delete", _) => delete::reply_one(self, asked, view).await,
            ("deletecollection", _) => delete::collection(self, asked, view).await,
            _ => Err(Status::method_not_allowed()),
        }
    }
}
