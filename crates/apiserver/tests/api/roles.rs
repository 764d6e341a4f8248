//! Roles and bindings, and what comes of them.

use http::Method;
use portolan_apiserver::User;
use serde_json::{Value, json};

use crate::harness::{Answer, CONFIG_MAPS, Client, Cluster, config_map};

const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";
const ROLES: &str = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/roles";
const BINDINGS: &str = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings";
const CLUSTER_ROLES: &str = "/apis/rbac.authorization.k8s.io/v1/clusterroles";

/// The administrator as somebody else.
struct As<'a>(&'a Client, &'a str);

impl As<'_> {
    async fn send(&self, method: Method, path: &str, body: &Value) -> Answer {
        let headers = [("content-type", "application/json"), ("impersonate-user", self.1)];
        let body = if body.is_null() { String::new() } else { body.to_string() };
        self.0.send(method, path, &headers, body).await
    }

    async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, &Value::Null).await
    }
}

fn role(name: &str, resources: &[&str], verbs: &[&str]) -> Value {
    json!({"metadata": {"name": name}, "rules": [{"apiGroups": [""], "resources": resources, "verbs": verbs}]})
}

fn binding(name: &str, kind: &str, role: &str, user: &str) -> Value {
    json!({"metadata": {"name": name}, "roleRef": {"kind": kind, "name": role}, "subjects": [{"kind": "User", "name": user}]})
}

#[tokio::test]
async fn a_binding_gives_rights_at_once_and_its_end_takes_them() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let jane = As(&admin, "jane");
    let words = "configmaps is forbidden: User \"jane\" cannot list resource \"configmaps\" in API group \"\" in the \
                 namespace \"default\"";
    assert_eq!(jane.get(CONFIG_MAPS).await.failure(), (403, words.to_owned()));
    admin.post(BINDINGS, &binding("b", "Role", "r", "jane")).await.ok();
    let why = format!("{words}: RBAC: role.rbac.authorization.k8s.io \"r\" not found");
    assert_eq!(jane.get(CONFIG_MAPS).await.failure(), (403, why));
    admin.post(ROLES, &role("r", &["configmaps"], &["get", "list"])).await.ok();
    assert_eq!(jane.get(CONFIG_MAPS).await.code, 200);
    assert_eq!(jane.send(Method::POST, CONFIG_MAPS, &config_map("a")).await.code, 403);
    assert_eq!(jane.get("/api/v1/configmaps").await.code, 403);
    assert_eq!(jane.get("/api/v1/namespaces/kube-system/configmaps").await.code, 403);
    admin.delete(&format!("{BINDINGS}/b")).await.ok();
    assert_eq!(jane.get(CONFIG_MAPS).await.failure(), (403, words.to_owned()));
}

#[tokio::test]
async fn names_narrow_lists_and_namespaces_reads() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let jane = As(&admin, "jane");
    let mut narrow = role("r", &["configmaps", "namespaces"], &["get", "list", "watch", "deletecollection"]);
    narrow["rules"][0]["resourceNames"] = json!(["a", "default"]);
    admin.post(ROLES, &narrow).await.ok();
    admin.post(BINDINGS, &binding("b", "Role", "r", "jane")).await.ok();
    admin.post(CONFIG_MAPS, &config_map("a")).await.ok();
    for (path, code) in [
        (format!("{CONFIG_MAPS}/a"), 200),
        (format!("{CONFIG_MAPS}/b"), 403),
        (CONFIG_MAPS.to_owned(), 403),
        (format!("{CONFIG_MAPS}?fieldSelector=metadata.name%3Da"), 200),
        (format!("{CONFIG_MAPS}?fieldSelector=metadata.name%3Db"), 403),
        ("/api/v1/namespaces/default".to_owned(), 200),
        ("/api/v1/namespaces/kube-system".to_owned(), 403),
        ("/api/v1/namespaces".to_owned(), 403),
    ] {
        assert_eq!(jane.get(&path).await.code, code, "{path}");
    }
    let all = format!("{CONFIG_MAPS}?fieldSelector=metadata.name%3Da");
    assert_eq!(jane.send(Method::DELETE, &all, &Value::Null).await.code, 403);
}

#[tokio::test]
async fn nobody_gives_what_they_do_not_have() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let jane = As(&admin, "jane");
    let own = json!({"metadata": {"name": "own"}, "rules": [
        {"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["roles", "rolebindings"],
            "verbs": ["create", "get", "update"]},
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}
    ]});
    admin.post(ROLES, &own).await.ok();
    admin.post(BINDINGS, &binding("own", "Role", "own", "jane")).await.ok();
    let wide = role("wide", &["pods", "secrets"], &["get", "list"]);
    let words = "roles.rbac.authorization.k8s.io \"wide\" is forbidden: user \"jane\" (groups=[\"system:authenticated\"]) is \
                 attempting to grant RBAC permissions not currently held:\n\
                 {APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"list\"]}\n\
                 {APIGroups:[\"\"], Resources:[\"secrets\"], Verbs:[\"get\" \"list\"]}";
    assert_eq!(jane.send(Method::POST, ROLES, &wide).await.failure(), (403, words.to_owned()));
    jane.send(Method::POST, ROLES, &role("narrow", &["pods"], &["get"])).await.ok();
    let widened = json!({"metadata": {"name": "narrow"}, "rules": wide["rules"]});
    assert_eq!(jane.send(Method::PUT, &format!("{ROLES}/narrow"), &widened).await.code, 403);
    assert_eq!(
        jane.send(Method::POST, BINDINGS, &binding("a", "ClusterRole", "cluster-admin", "jane")).await.code,
        403
    );
    jane.send(Method::POST, BINDINGS, &binding("b", "Role", "narrow", "joe")).await.ok();
    let missing = jane.send(Method::POST, BINDINGS, &binding("c", "Role", "none", "joe")).await.failure();
    assert_eq!(missing, (404, "roles.rbac.authorization.k8s.io \"none\" not found".to_owned()));
    // Who may escalate or bind, may.
    let verbs = json!({"metadata": {"name": "more"}, "rules": [
        {"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["roles"], "verbs": ["escalate"]},
        {"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["clusterroles"], "verbs": ["bind"], "resourceNames": ["view"]}
    ]});
    admin.post(ROLES, &verbs).await.ok();
    admin.post(BINDINGS, &binding("more", "Role", "more", "jane")).await.ok();
    jane.send(Method::POST, ROLES, &wide).await.ok();
    jane.send(Method::POST, BINDINGS, &binding("v", "ClusterRole", "view", "joe")).await.ok();
    assert_eq!(
        jane.send(Method::POST, BINDINGS, &binding("e", "ClusterRole", "edit", "joe")).await.code,
        201,
        "edit is empty"
    );
    let gathers =
        json!({"metadata": {"name": "g"}, "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"a": "b"}}]}});
    assert_eq!(admin.post(CLUSTER_ROLES, &gathers).await.code, 201);
}

/// However its path is written, an object is asked for by the rights that it takes.
#[tokio::test]
async fn no_spelling_of_a_path_leads_past_the_rules() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let jane = As(&admin, "jane");
    let mut narrow = role("r", &["configmaps"], &["get", "list", "watch"]);
    narrow["rules"][0]["resourceNames"] = json!(["a"]);
    admin.post(ROLES, &narrow).await.ok();
    admin.post(BINDINGS, &binding("b", "Role", "r", "jane")).await.ok();
    for name in ["a", "b"] {
        admin.post(CONFIG_MAPS, &config_map(name)).await.ok();
    }
    let v1 = "/api/v1";
    for path in [
        "namespaces/default/configmaps/%62",
        "namespaces/default/configmaps/a%2Fb",
        "namespaces/default/configmaps/a/../b",
        "namespaces/default/configmaps/a/%2e%2e/b",
        "namespaces/default/configmaps%2Fb",
        "namespaces/default//configmaps/b",
        "namespaces/default/configmaps/b/",
        "namespaces/default/configmaps/b?fieldSelector=metadata.name%3Da",
        "namespaces/default/configmaps/b?watch=1&fieldSelector=metadata.name%3Da",
        "namespaces/default/configmaps/",
        "namespaces/default/configmaps?fieldSelector=metadata.name!%3Da",
        "namespaces/default/configmaps?fieldSelector=metadata.name%3Db&fieldSelector=metadata.name%3Da",
        "namespaces/default/configmaps?fieldSelector=metadata.name%3Db,metadata.name%3Da",
        "namespaces/%64efault/configmaps/b",
        "configmaps?fieldSelector=metadata.name%3Da",
        "watch/namespaces/default/configmaps",
        "watch/namespaces/default/configmaps/b",
    ] {
        for before in ["", "/"] {
            let path = format!("{before}{v1}/{path}");
            let (get, head) = (jane.get(&path).await, jane.send(Method::HEAD, &path, &Value::Null).await);
            assert!(matches!(get.code, 400 | 403 | 404), "{path}: {} {:?}", get.code, get.bytes);
            assert!(matches!(head.code, 400 | 403 | 404), "{path}: {}", head.code);
        }
    }
    assert_eq!(jane.get("//api/v1/namespaces/default/configmaps/%61/").await.code, 200);
}

/// A role of some kilobytes must not take all of the memory to compare.
#[tokio::test]
async fn a_role_that_multiplies_is_refused() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let jane = As(&admin, "jane");
    let mut own = role("own", &["roles"], &["create"]);
    own["rules"][0]["apiGroups"] = json!(["rbac.authorization.k8s.io"]);
    admin.post(ROLES, &own).await.ok();
    admin.post(BINDINGS, &binding("own", "Role", "own", "jane")).await.ok();
    let many: Vec<String> = (0..1000).map(|number| format!("x{number}")).collect();
    let rule = json!({"verbs": many, "apiGroups": many, "resources": many, "resourceNames": many});
    let vast = json!({"metadata": {"name": "vast"}, "rules": [rule]});
    let (code, message) = jane.send(Method::POST, ROLES, &vast).await.failure();
    assert_eq!(code, 403);
    assert!(message.contains("too many to be compared"), "{message}");
    // Who has all that is asked for needs no comparison of the parts.
    let all = json!({"metadata": {"name": "all"}, "rules": [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]});
    admin.post(ROLES, &all).await.ok();
    admin.post(BINDINGS, &binding("all", "Role", "all", "jane")).await.ok();
    assert_eq!(jane.send(Method::POST, ROLES, &vast).await.code, 201);
}

#[tokio::test]
async fn who_may_only_change_makes_nothing() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let jane = As(&admin, "jane");
    admin.post(ROLES, &role("r", &["endpoints"], &["get", "update", "patch"])).await.ok();
    admin.post(BINDINGS, &binding("b", "Role", "r", "jane")).await.ok();
    let endpoints = json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "a"}});
    let words = "endpoints \"a\" is forbidden: User \"jane\" cannot create resource \"endpoints\" in API group \"\" in the \
                 namespace \"default\"";
    let path = "/api/v1/namespaces/default/endpoints/a";
    assert_eq!(jane.send(Method::PUT, path, &endpoints).await.failure(), (403, words.to_owned()));
    let applied = async || {
        let headers = [("content-type", "application/apply-patch+yaml"), ("impersonate-user", "jane")];
        admin.send(Method::PATCH, &format!("{path}?fieldManager=m"), &headers, endpoints.to_string()).await
    };
    assert_eq!(applied().await.failure(), (403, words.to_owned()));
    assert_eq!(admin.put(path, &endpoints).await.code, 201);
    assert_eq!(jane.send(Method::PUT, path, &endpoints).await.code, 200);
    assert_eq!(applied().await.code, 200);
    // Of a Lease, only one that is there needs the revision that was seen.
    let leases = "/apis/coordination.k8s.io/v1/namespaces/default/leases";
    let lease = json!({"metadata": {"name": "a"}});
    assert_eq!(admin.put(&format!("{leases}/a"), &lease).await.code, 201);
    assert_eq!(admin.put(&format!("{leases}/a"), &lease).await.code, 422);
}

#[tokio::test]
async fn what_every_cluster_begins_with() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let role = admin.get(&format!("{CLUSTER_ROLES}/system:node-proxier")).await.ok();
    assert_eq!(role["metadata"]["labels"]["kubernetes.io/bootstrapping"], "rbac-defaults");
    assert_eq!(role["metadata"]["annotations"]["rbac.authorization.kubernetes.io/autoupdate"], "true");
    let proxy = cluster.client(&User::new("system:kube-proxy", &[]));
    for path in ["/api/v1/services", "/api/v1/nodes", "/apis/discovery.k8s.io/v1/endpointslices"] {
        assert_eq!(proxy.get(path).await.code, 200, "{path}");
    }
    assert_eq!(proxy.get("/api/v1/secrets").await.code, 403);
    let controllers = cluster.client(&User::controllers());
    assert_eq!(controllers.get("/api/v1/secrets").await.code, 200);
    assert_eq!(controllers.post(CLUSTER_ROLES, &json!({"metadata": {"name": "x"}})).await.code, 403);
    // What is taken away comes back with the next start; what was added stays, and so does what is to be left alone.
    let path = format!("{CLUSTER_ROLES}/system:discovery");
    let rules = json!({"rules": [{"verbs": ["get"], "nonResourceURLs": ["/extra"]}]});
    admin.merge(&path, &rules).await.ok();
    let quiet = json!({"metadata": {"annotations": {"rbac.authorization.kubernetes.io/autoupdate": "false"}}, "subjects": null});
    admin.merge(&format!("{RBAC}/clusterrolebindings/system:monitoring"), &quiet).await.ok();
    let cluster = Cluster::start_in(cluster.stop().await, |_| {}).await;
    let admin = cluster.admin();
    let rules = admin.get(&path).await.ok()["rules"].to_string();
    assert!(rules.contains("/extra") && rules.contains("/openapi/*"), "{rules}");
    let left = admin.get(&format!("{RBAC}/clusterrolebindings/system:monitoring")).await.ok();
    assert_eq!(left.get("subjects"), None);
}

#[tokio::test]
async fn reviews() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    admin.post(ROLES, &role("r", &["configmaps"], &["get"])).await.ok();
    admin.post(BINDINGS, &binding("b", "Role", "r", "jane")).await.ok();
    let review = |plural: &str| format!("/apis/authorization.k8s.io/v1/{plural}");
    let get = |name: &str| json!({"verb": "get", "resource": "configmaps", "namespace": "default", "name": name});
    let asked = json!({"spec": {"user": "jane", "resourceAttributes": get("a")}});
    let answer = admin.post(&review("subjectaccessreviews"), &asked).await.ok();
    let why = "RBAC: allowed by RoleBinding \"b/default\" of Role \"r\" to User \"jane\"";
    assert_eq!(answer["status"], json!({"allowed": true, "reason": why}));
    let nobody = admin.post(&review("subjectaccessreviews"), &json!({"spec": {"resourceAttributes": get("a")}})).await;
    let words = ".authorization.k8s.io \"\" is invalid: spec.user: Invalid value: \"\": at least one of user \
                 or group must be specified";
    assert_eq!(nobody.failure(), (422, words.to_owned()));
    let jane = As(&admin, "jane");
    assert_eq!(jane.send(Method::POST, &review("subjectaccessreviews"), &asked).await.code, 403);
    let local = review("namespaces/default/localsubjectaccessreviews");
    let mut in_namespace = asked.clone();
    in_namespace["metadata"] = json!({"namespace": "default"});
    assert_eq!(admin.post(&local, &in_namespace).await.ok()["status"]["allowed"], true);
    assert_eq!(admin.post(&local, &asked).await.ok()["status"]["allowed"], true, "it is asked there");
    in_namespace["metadata"] = json!({"namespace": "other"});
    assert_eq!(admin.post(&local, &in_namespace).await.code, 422);
    let mine = json!({"spec": {"resourceAttributes": get("a")}});
    let own = jane.send(Method::POST, &review("selfsubjectaccessreviews"), &mine).await.ok();
    assert_eq!(own["status"]["allowed"], true);
    let rules = json!({"spec": {"namespace": "default"}});
    let rules = jane.send(Method::POST, &review("selfsubjectrulesreviews"), &rules).await.ok();
    assert_eq!(rules["status"]["incomplete"], false);
    let expected = json!({"verbs": ["get"], "apiGroups": [""], "resources": ["configmaps"]});
    assert!(rules["status"]["resourceRules"].as_array().unwrap().contains(&expected), "{rules}");
    assert!(rules["status"]["nonResourceRules"].to_string().contains("/openapi/*"), "{rules}");
}

/// A node may list what is narrowed to itself, and whoever asks about it is told so.
#[tokio::test]
async fn reviews_may_be_narrowed_by_selectors() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let ask = async |selector: Value| {
        let what = json!({"verb": "list", "resource": "pods", "fieldSelector": selector});
        let spec = json!({"user": "system:node:n1", "groups": ["system:nodes"], "resourceAttributes": what});
        admin.post("/apis/authorization.k8s.io/v1/subjectaccessreviews", &json!({ "spec": spec })).await
    };
    for (selector, allowed) in [
        (json!({"rawSelector": "spec.nodeName=n1"}), true),
        (json!({"requirements": [{"key": "spec.nodeName", "operator": "In", "values": ["n1"]}]}), true),
        (json!({"rawSelector": "spec.nodeName=n2"}), false),
    ] {
        assert_eq!(ask(selector.clone()).await.ok()["status"]["allowed"], allowed, "{selector}");
    }
    let unread = ask(json!({"rawSelector": "nonsense"})).await.ok();
    assert_eq!(unread["status"]["allowed"], false);
    let why = "spec.resourceAttributes.fieldSelector ignored due to parse error";
    assert_eq!(unread["status"]["evaluationError"], why);
    assert_eq!(unread["spec"]["resourceAttributes"]["fieldSelector"]["rawSelector"], "nonsense");
    let at = "spec.resourceAttributes.fieldSelector";
    let words = format!(
        ".authorization.k8s.io \"\" is invalid: {at}.requirements: Required value: when {at} is \
         specified, requirements or rawSelector is required"
    );
    assert_eq!(ask(json!({})).await.failure(), (422, words));
}

/// Whoever runs a stock controller against this API gives it its account.
#[tokio::test]
async fn upstreams_controllers_have_their_roles() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let controller = As(&admin, "system:serviceaccount:kube-system:endpointslice-controller");
    let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
    let slice = json!({"metadata": {"name": "a"}, "addressType": "IPv4", "endpoints": [], "ports": []});
    assert_eq!(controller.send(Method::POST, slices, &slice).await.code, 201);
    let secrets = "/api/v1/namespaces/default/secrets";
    assert_eq!(controller.send(Method::POST, secrets, &json!({"metadata": {"name": "a"}})).await.code, 403);
    let bound = admin.get(&format!("{RBAC}/clusterrolebindings/system:node")).await.ok();
    assert_eq!(bound.get("subjects"), None, "nodes are authorized by what they are");
    admin.get(&format!("{RBAC}/namespaces/kube-public/roles/system:controller:bootstrap-signer")).await.ok();
}

#[tokio::test]
async fn taking_another_name_is_a_right_of_its_own() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let may = json!({"metadata": {"name": "as"}, "rules": [
        {"apiGroups": [""], "resources": ["users"], "verbs": ["impersonate"], "resourceNames": ["jane"]}
    ]});
    admin.post(CLUSTER_ROLES, &may).await.ok();
    admin.post(&format!("{RBAC}/clusterrolebindings"), &binding("as", "ClusterRole", "as", "joe")).await.ok();
    let joe = cluster.client(&User::new("joe", &[]));
    let myself = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let whoami = async |headers: &[(&str, &str)]| {
        let headers = [&[("content-type", "application/json")], headers].concat();
        joe.send(Method::POST, myself, &headers, "{}").await
    };
    let answer = whoami(&[("impersonate-user", "jane")]).await.ok();
    let info = json!({"username": "jane", "groups": ["system:authenticated"]});
    assert_eq!(answer["status"]["userInfo"], info);
    for (headers, why) in [
        (vec![("impersonate-user", "jack")], "users \"jack\" is forbidden"),
        (vec![("impersonate-user", "jane"), ("impersonate-group", "g")], "groups \"g\" is forbidden"),
        (vec![("impersonate-user", "jane"), ("impersonate-uid", "u")], "uids.authentication.k8s.io \"u\" is forbidden"),
        (
            vec![("impersonate-user", "jane"), ("impersonate-extra-scopes", "s")],
            "userextras.authentication.k8s.io \"s\" is forbidden",
        ),
        (vec![("impersonate-user", "system:serviceaccount:a:b")], "serviceaccounts \"b\" is forbidden"),
    ] {
        let (code, message) = whoami(&headers).await.failure();
        assert_eq!(code, 403, "{headers:?}");
        assert!(message.starts_with(why), "{message}");
    }
    assert_eq!(whoami(&[("impersonate-group", "g")]).await.code, 400);
    let full = [("impersonate-user", "system:serviceaccount:a:b"), ("content-type", "application/json")];
    let account = admin.send(Method::POST, myself, &full, "{}").await.ok();
    let groups = json!(["system:serviceaccounts", "system:serviceaccounts:a", "system:authenticated"]);
    assert_eq!(account["status"]["userInfo"]["groups"], groups);
}

#[tokio::test]
async fn a_node_reads_what_its_pods_name() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let node = cluster.client(&User::node("n1"));
    let secrets = "/api/v1/namespaces/default/secrets";
    for name in ["mine", "other"] {
        admin.post(secrets, &json!({"metadata": {"name": name}})).await.ok();
    }
    let pods = "/api/v1/namespaces/default/pods";
    let pod = |name: &str, secret: &str| {
        json!({"metadata": {"name": name}, "spec": {
            "containers": [{"name": "c", "image": "i"}], "volumes": [{"name": "v", "secret": {"secretName": secret}}]
        }})
    };
    for (name, secret, to) in [("a", "mine", "n1"), ("b", "other", "n2")] {
        admin.post(pods, &pod(name, secret)).await.ok();
        let target = json!({"metadata": {"name": name}, "target": {"kind": "Node", "name": to}});
        assert_eq!(admin.post(&format!("{pods}/{name}/binding"), &target).await.code, 201);
    }
    for (path, code) in [
        (format!("{secrets}/mine"), 200),
        (format!("{secrets}/other"), 403),
        (secrets.to_owned(), 403),
        ("/api/v1/namespaces/default/configmaps/kube-root-ca.crt".to_owned(), 404),
        ("/api/v1/namespaces/default/configmaps/other".to_owned(), 403),
        (format!("{pods}/a"), 200),
        (format!("{pods}/b"), 403),
        ("/api/v1/pods?fieldSelector=spec.nodeName%3Dn1".to_owned(), 200),
        ("/api/v1/pods?fieldSelector=spec.nodeName%3Dn2".to_owned(), 403),
        ("/api/v1/pods".to_owned(), 403),
        (RBAC.to_owned(), 200),
        (CLUSTER_ROLES.to_owned(), 403),
    ] {
        assert_eq!(node.get(&path).await.code, code, "{path}");
    }
    let (_, message) = node.get(&format!("{secrets}/other")).await.failure();
    assert!(message.ends_with(": no relationship found between node 'n1' and this object"), "{message}");
    admin.delete(&format!("{pods}/a?gracePeriodSeconds=0")).await.ok();
    assert_eq!(node.get(&format!("{secrets}/mine")).await.code, 403);
}
