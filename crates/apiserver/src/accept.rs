//! The Accept header -> how to show objects.

use portolan_kinds::{Status, protobuf};

/// How objects are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Form {
    Whole,
    /// For people.
    Table(Rows),
    /// Only the metadata.
    Partial,
}

/// What of a table is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Rows {
    /// So much of each object stands beside its row.
    pub include: Include,
    /// It is asked for by the name that it had first.
    pub is_beta: bool,
    /// What its columns are was said in an earlier event.
    pub goes_on: bool,
}

impl Rows {
    pub(crate) fn api_version(self) -> &'static str {
        if self.is_beta { "meta.k8s.io/v1beta1" } else { "meta.k8s.io/v1" }
    }
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

/// What the bytes of an answer are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Media {
    #[default]
    Json,
    Yaml,
    Protobuf,
}

impl Media {
    /// In the order in which a client that takes anything gets them.
    const ALL: [Self; 3] = [Self::Json, Self::Yaml, Self::Protobuf];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Yaml => "application/yaml",
            Self::Protobuf => protobuf::MEDIA_TYPE,
        }
    }

    /// Where an event ends can be told in it, so that a watch can be.
    fn streams(self) -> bool {
        self != Self::Yaml
    }

    /// What a watch in it calls itself.
    pub(crate) fn streamed(self) -> &'static str {
        match self {
            Self::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
            other => other.as_str(),
        }
    }
}

/// How an answer looks, and what it is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct View {
    pub(crate) form: Form,
    pub(crate) media: Media,
}

/// A part of the header between commas.
struct Clause<'a> {
    /// Such as `application` and `json`.
    media: (&'a str, &'a str),
    quality: f64,
    parameters: Vec<(&'a str, &'a str)>,
}

impl<'a> Clause<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let mut parts = text.split(';');
        let media = match parts.next().unwrap_or_default().trim() {
            "*" | "" => ("*", "*"),
            media => media.split_once('/')?,
        };
        let parameters: Vec<_> = parts.filter_map(|part| part.trim().split_once('=')).collect();
        let mut clause = Self { media, quality: 1.0, parameters };
        clause.quality = clause.find("q").map_or(1.0, |quality| quality.parse().unwrap_or(0.0));
        Some(clause)
    }

    fn find(&self, name: &str) -> Option<&'a str> {
        self.parameters.iter().rev().find(|(key, _)| *key == name).map(|(_, value)| *value)
    }

    fn get(&self, name: &str) -> &'a str {
        self.find(name).unwrap_or_default()
    }

    fn takes(&self, media: &str) -> bool {
        media.split_once('/').is_some_and(|(kind, sub)| match self.media {
            ("*", "*") => true,
            (of, "*") => of == kind,
            both => both == (kind, sub),
        })
    }

    /// Whether a client that sends both is answered by this one rather than by one that stands before it.
    fn goes_before(&self, other: &Self) -> bool {
        let ((kind, sub), (other_kind, other_sub)) = (self.media, other.media);
        self.quality > other.quality || kind != "*" && other_kind == "*" || sub != "*" && other_sub == "*"
    }

    /// How it wants an object to look, if that is something that is known.
    fn form(&self, include: Include) -> Option<Form> {
        let version = if self.get("g") == "meta.k8s.io" { self.get("v") } else { "" };
        match self.get("as") {
            "" if self.get("g").is_empty() && self.get("v").is_empty() => Some(Form::Whole),
            "Table" if matches!(version, "v1" | "v1beta1") => {
                Some(Form::Table(Rows { include, is_beta: version == "v1beta1", goes_on: false }))
            }
            "PartialObjectMetadata" | "PartialObjectMetadataList" if version == "v1" => Some(Form::Partial),
            _ => None,
        }
    }
}

/// In the order in which they count. Source: `goautoneg`, whose order is by insertion.
fn clauses(accept: &str) -> Vec<Clause<'_>> {
    let mut sorted: Vec<Clause<'_>> = Vec::new();
    for clause in accept.split(',').filter_map(|clause| Clause::parse(clause.trim())) {
        let place = sorted.iter().rposition(|before| !clause.goes_before(before)).map_or(0, |last| last + 1);
        sorted.insert(place, clause);
    }
    sorted
}

/// The first that can be served.
fn negotiate(accept: &str, served: impl Fn(&Clause<'_>, Media) -> Option<View>) -> Option<View> {
    clauses(accept).iter().find_map(|clause| {
        let mut media = Media::ALL.into_iter().filter(|media| clause.takes(media.as_str()));
        media.find_map(|media| {
            let stream = clause.get("stream");
            let streams = stream.is_empty() || stream == "watch" && media.streams();
            served(clause, media).filter(|_| streams && clause.get("sv").is_empty())
        })
    })
}

/// How objects of a kind are shown, be it one of the program's `own` or one that somebody defined.
///
/// # Errors
/// 406 when nothing can be served.
pub(crate) fn view(accept: &str, include: Include, own: bool) -> Result<View, Status> {
    negotiate(accept, |clause, media| {
        let form = clause.form(include)?;
        let exists = match form {
            Form::Whole => own || media != Media::Protobuf,
            Form::Partial => true,
            Form::Table(_) => media != Media::Protobuf,
        };
        exists.then_some(View { form, media })
    })
    .ok_or_else(|| Status::not_acceptable(&Media::ALL.map(Media::as_str)))
}

/// What of it can be watched.
///
/// # Errors
/// 406 when it cannot be.
pub(crate) fn watched(view: View) -> Result<View, Status> {
    if view.media.streams() {
        return Ok(view);
    }
    let streams = ["application/json;stream=watch", Media::Protobuf.streamed()];
    Err(Status::not_acceptable(&streams))
}

/// For what has no metadata, and so no rows either.
///
/// # Errors
/// 406 when the client does not take it as it is.
pub(crate) fn whole(accept: &str) -> Result<Media, Status> {
    let whole = |clause: &Clause<'_>, media| {
        let form = clause.form(Include::None).filter(|form| *form == Form::Whole)?;
        Some(View { form, media })
    };
    let view = negotiate(accept, whole).ok_or_else(|| Status::not_acceptable(&Media::ALL.map(Media::as_str)))?;
    Ok(view.media)
}

/// The one of `offered` that a document is served in.
///
/// # Errors
/// 406 when the client takes none.
pub(crate) fn first<'a>(accept: &str, offered: &[&'a str]) -> Result<&'a str, Status> {
    let taken = |clause: &Clause<'_>| offered.iter().find(|media| clause.takes(media)).copied();
    clauses(accept).iter().find_map(taken).ok_or_else(|| Status::not_acceptable(offered))
}

pub(crate) fn discovery(accept: &str) -> Discovery {
    clauses(accept)
        .iter()
        .find_map(|clause| match (clause.get("as"), clause.get("g"), clause.get("v")) {
            ("", ..) if Media::ALL.iter().any(|media| clause.takes(media.as_str())) => Some(Discovery::Plain),
            ("APIGroupDiscoveryList", "apidiscovery.k8s.io", "v2") => Some(Discovery::AggregatedV2),
            ("APIGroupDiscoveryList", "apidiscovery.k8s.io", "v2beta1") => Some(Discovery::AggregatedV2Beta1),
            _ => None,
        })
        .unwrap_or(Discovery::Plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The form and the media type, or the code.
    fn shown(accept: &str, own: bool) -> Result<(Form, Media), u16> {
        view(accept, Include::Object, own).map(|view| (view.form, view.media)).map_err(|status| status.code())
    }

    #[test]
    fn what_clients_send() {
        use Form::{Partial, Table, Whole};
        use Media::{Json, Protobuf, Yaml};
        let rows = Table(Rows { include: Include::Object, is_beta: false, goes_on: false });
        let beta = Table(Rows { include: Include::Object, is_beta: true, goes_on: false });
        let client_go = "application/vnd.kubernetes.protobuf,application/json";
        let metadata = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,\
                        application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json";
        for (accept, own, defined) in [
            ("", Ok((Whole, Json)), Ok((Whole, Json))),
            ("*/*", Ok((Whole, Json)), Ok((Whole, Json))),
            ("application/*", Ok((Whole, Json)), Ok((Whole, Json))),
            ("application/json", Ok((Whole, Json)), Ok((Whole, Json))),
            ("application/yaml", Ok((Whole, Yaml)), Ok((Whole, Yaml))),
            (client_go, Ok((Whole, Protobuf)), Ok((Whole, Json))),
            ("application/vnd.kubernetes.protobuf", Ok((Whole, Protobuf)), Err(406)),
            ("application/vnd.kubernetes.protobuf, */*", Ok((Whole, Protobuf)), Ok((Whole, Json))),
            (metadata, Ok((Partial, Protobuf)), Ok((Partial, Protobuf))),
            (
                "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json",
                Ok((rows, Json)),
                Ok((rows, Json)),
            ),
            ("application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json", Ok((beta, Json)), Ok((beta, Json))),
            ("application/json;as=Table;v=v2;g=meta.k8s.io", Err(406), Err(406)),
            ("application/yaml;as=Table;v=v1;g=meta.k8s.io", Ok((rows, Yaml)), Ok((rows, Yaml))),
            ("application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io", Err(406), Err(406)),
            ("*/*;as=Table;v=v1;g=meta.k8s.io", Ok((rows, Json)), Ok((rows, Json))),
            ("application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1", Ok((Partial, Json)), Ok((Partial, Json))),
            ("application/json;as=Whatever", Err(406), Err(406)),
            ("application/json;sv=v1", Err(406), Err(406)),
            ("application/yaml;stream=watch", Err(406), Err(406)),
            ("application/json;stream=watch", Ok((Whole, Json)), Ok((Whole, Json))),
            ("text/html", Err(406), Err(406)),
            // Browsers.
            ("text/html,application/xml;q=0.9,*/*;q=0.8", Ok((Whole, Json)), Ok((Whole, Json))),
            // The better ones first, and the more exact ones.
            ("application/json;q=0.5,application/yaml", Ok((Whole, Yaml)), Ok((Whole, Yaml))),
            ("application/json;q=0.5,application/yaml;q=0.6", Ok((Whole, Yaml)), Ok((Whole, Yaml))),
            ("*/*,application/yaml", Ok((Whole, Yaml)), Ok((Whole, Yaml))),
            ("application/yaml,application/json", Ok((Whole, Yaml)), Ok((Whole, Yaml))),
        ] {
            assert_eq!(shown(accept, true), own, "{accept}");
            assert_eq!(shown(accept, false), defined, "{accept}");
        }
    }

    #[test]
    fn what_can_be_watched_and_what_has_no_rows() {
        let yaml = view("application/yaml", Include::None, true).unwrap();
        assert_eq!(
            watched(yaml).unwrap_err().message(),
            "only the following media types are accepted: application/json;stream=watch, \
             application/vnd.kubernetes.protobuf;stream=watch"
        );
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
        assert_eq!(whole(&format!("{table},application/yaml")).ok(), Some(Media::Yaml));
        assert_eq!(
            whole(table).unwrap_err().message(),
            "only the following media types are accepted: application/json, application/yaml, \
             application/vnd.kubernetes.protobuf"
        );
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
