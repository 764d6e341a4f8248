//! The Accept header -> how to show objects.

use portolan_kinds::Status;

/// How objects are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Form {
    Whole,
    /// As rows, for people; with this much of each object beside its row.
    Table(Include),
    /// Only the metadata.
    Partial,
}

/// `includeObject`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Include {
    None,
    #[default]
    Metadata,
    /// `kubectl get --sort-by` looks for its field here.
    Object,
}

/// Which discovery document is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Discovery {
    Plain,
    AggregatedV2,
    AggregatedV2Beta1,
}

struct Clause<'a> {
    media: &'a str,
    parameters: Vec<(&'a str, &'a str)>,
}

impl Clause<'_> {
    fn get(&self, name: &str) -> &str {
        self.parameters.iter().find(|(key, _)| *key == name).map_or("", |(_, value)| value)
    }

    fn is_json(&self) -> bool {
        matches!(self.media, "application/json" | "application/*" | "*/*" | "")
    }
}

fn clauses(accept: &str) -> impl Iterator<Item = Clause<'_>> {
    accept.split(',').map(|clause| {
        let mut parts = clause.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default();
        let parameters = parts.filter_map(|part| part.split_once('=')).collect();
        Clause { media, parameters }
    })
}

/// The first clause that can be served, in the client's order.
///
/// # Errors
/// 406 when nothing can be served.
pub(crate) fn form(accept: &str, include: Include) -> Result<Form, Status> {
    clauses(accept)
        .filter(Clause::is_json)
        .find_map(|clause| {
            let meta_v1 = clause.get("g") == "meta.k8s.io" && clause.get("v") == "v1";
            match clause.get("as") {
                "" => Some(Form::Whole),
                "Table" if meta_v1 => Some(Form::Table(include)),
                "PartialObjectMetadata" | "PartialObjectMetadataList" if meta_v1 => Some(Form::Partial),
                _ => None,
            }
        })
        .ok_or_else(|| Status::not_acceptable(&["application/json"]))
}

/// For what has no metadata, and so no rows either: whether the client takes it as it is.
///
/// # Errors
/// 406 when it does not.
pub(crate) fn whole(accept: &str) -> Result<(), Status> {
    match clauses(accept).any(|clause| clause.is_json() && clause.get("as").is_empty()) {
        true => Ok(()),
        false => Err(Status::not_acceptable(&["application/json"])),
    }
}

pub(crate) fn discovery(accept: &str) -> Discovery {
    clauses(accept)
        .find_map(|clause| match (clause.get("as"), clause.get("g"), clause.get("v")) {
            ("", ..) if clause.is_json() => Some(Discovery::Plain),
            ("APIGroupDiscoveryList", "apidiscovery.k8s.io", "v2") => Some(Discovery::AggregatedV2),
            ("APIGroupDiscoveryList", "apidiscovery.k8s.io", "v2beta1") => Some(Discovery::AggregatedV2Beta1),
            _ => None,
        })
        .unwrap_or(Discovery::Plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_clients_send() {
        for (accept, expected) in [
            ("", Ok(Form::Whole)),
            ("*/*", Ok(Form::Whole)),
            ("application/json", Ok(Form::Whole)),
            ("application/vnd.kubernetes.protobuf,application/json", Ok(Form::Whole)),
            (
                "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json",
                Ok(Form::Table(Include::Object)),
            ),
            ("application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json", Ok(Form::Whole)),
            ("application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1", Ok(Form::Partial)),
            ("application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1", Ok(Form::Partial)),
            ("application/json;as=Whatever", Err(406)),
            ("application/vnd.kubernetes.protobuf", Err(406)),
            ("text/html", Err(406)),
        ] {
            assert_eq!(form(accept, Include::Object).map_err(|status| status.code()), expected, "{accept}");
        }
    }

    #[test]
    fn discovery_documents() {
        let both = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,\
                    application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";
        assert_eq!(discovery(both), Discovery::AggregatedV2);
        assert_eq!(
            discovery("application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList"),
            Discovery::AggregatedV2Beta1
        );
        assert_eq!(discovery("application/json"), Discovery::Plain);
        assert_eq!(discovery(""), Discovery::Plain);
    }
}
