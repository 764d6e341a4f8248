//! Who a container runs as: the pod's wish, else the image's, in numbers.
//!
//! Names are looked up in the image's own `/etc/passwd` and `/etc/group`. Source: `kuberuntime/security_context.go`,
//! the OCI image specification's `User`.

use k8s_openapi::api::core::v1::{Container, Pod};

use crate::pod::User;

/// # Errors
/// With the kubelet's words when the user is not known, or may not be root and is.
pub(super) fn user(pod: &Pod, container: &Container, image: &str, passwd: &str, group: &str) -> Result<User, String> {
    let security = container.security_context.clone().unwrap_or_default();
    let of_pod = pod.spec.as_ref().and_then(|spec| spec.security_context.clone()).unwrap_or_default();
    let (name, group_name) = image.split_once(':').map_or((image, None), |(user, group)| (user, Some(group)));
    let id = |value: Option<i64>| value.and_then(|value| u32::try_from(value).ok());
    let wished = id(security.run_as_user.or(of_pod.run_as_user));
    let from_image = match name {
        "" => Some((0, None)),
        name => match name.parse() {
            Ok(uid) => Some((uid, field(passwd, 2, name, 3))),
            Err(_) => field(passwd, 0, name, 2).map(|uid| (uid, field(passwd, 0, name, 3))),
        },
    };
    let (uid, primary) = match (wished, from_image) {
        (Some(uid), _) => (uid, field(passwd, 2, &uid.to_string(), 3)),
        (None, Some(found)) => found,
        (None, None) => return Err(format!("unable to find user {name}: no matching entries in passwd file")),
    };
    let image_group = match group_name.filter(|_| wished.is_none()) {
        None => None,
        Some(name) => {
            let gid = name.parse().ok().or_else(|| field(group, 0, name, 2));
            Some(gid.ok_or_else(|| format!("unable to find group {name}: no matching entries in group file"))?)
        }
    };
    let gid = id(security.run_as_group.or(of_pod.run_as_group)).or(image_group).or(primary).unwrap_or(0);
    if security.run_as_non_root.or(of_pod.run_as_non_root) == Some(true) && uid == 0 {
        return Err(match wished {
            Some(_) => "container's runAsUser breaks non-root policy",
            None => "container has runAsNonRoot and image will run as root",
        }
        .to_owned());
    }
    let mut groups: Vec<u32> =
        of_pod.supplemental_groups.into_iter().flatten().filter_map(|gid| id(Some(gid))).collect();
    groups.extend(id(of_pod.fs_group));
    // Groups that the image's files give the user, unless the pod wants only those that it names.
    let strict = of_pod.supplemental_groups_policy.as_deref() == Some("Strict");
    let login = if strict { "" } else { passwd };
    let login = login.lines().find(|line| line.split(':').nth(2) == Some(uid.to_string().as_str()));
    if let Some(login) = login.and_then(|line| line.split(':').next()) {
        groups.extend(group.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let gid: u32 = fields.nth(2)?.parse().ok()?;
            fields.next()?.split(',').any(|member| member == login).then_some(gid)
        }));
    }
    groups.sort_unstable();
    groups.dedup();
    Ok(User { uid, gid, groups })
}

/// The number in field `wanted` of the line whose field `key` is `value`.
fn field(text: &str, key: usize, value: &str, wanted: usize) -> Option<u32> {
    let line = text.lines().find(|line| line.split(':').nth(key) == Some(value))?;
    line.split(':').nth(wanted)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn check(pod: Value, container: Value, image: &str) -> Result<(u32, u32, Vec<u32>), String> {
        let mut container = container;
        container["name"] = json!("c");
        let pod: Pod =
            serde_json::from_value(json!({"spec": {"securityContext": pod, "containers": [container]}})).unwrap();
        let passwd = "root:x:0:0::/:/sh\nweb:x:33:34::/:/sh\n";
        let group = "root:x:0:\nlogs:x:50:web,other\nwww:x:34:\n";
        let user = user(&pod, &pod.spec.as_ref().unwrap().containers[0], image, passwd, group)?;
        Ok((user.uid, user.gid, user.groups))
    }

    #[test]
    fn who_it_is() {
        let none = || json!({});
        let context = |value: Value| json!({"securityContext": value});
        assert_eq!(check(none(), none(), "").unwrap(), (0, 0, vec![]));
        assert_eq!(check(none(), none(), "web").unwrap(), (33, 34, vec![50]));
        assert_eq!(check(none(), none(), "web:logs").unwrap(), (33, 50, vec![50]));
        assert_eq!(check(none(), none(), "1000:7").unwrap(), (1000, 7, vec![]));
        assert_eq!(check(json!({"runAsUser": 33, "fsGroup": 9}), none(), "").unwrap(), (33, 34, vec![9, 50]));
        let both = check(json!({"runAsUser": 5}), context(json!({"runAsUser": 6, "runAsGroup": 8})), "web:logs");
        assert_eq!(both.unwrap(), (6, 8, vec![]));
        let strict = json!({"runAsUser": 33, "supplementalGroups": [7], "supplementalGroupsPolicy": "Strict"});
        assert_eq!(check(strict, none(), "").unwrap(), (33, 34, vec![7]));
        assert!(check(none(), none(), "nobody").unwrap_err().contains("unable to find user nobody"));
        assert!(check(none(), none(), "web:no").unwrap_err().contains("unable to find group no"));
        assert!(check(json!({"runAsNonRoot": true}), none(), "").unwrap_err().contains("will run as root"));
        assert!(check(json!({"runAsNonRoot": true}), none(), "web").is_ok());
    }
}
