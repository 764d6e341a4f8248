//! Selectors -> whether an object is wanted, looking at no more of it than they need.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::sync::{Mutex, OnceLock, PoisonError};

use bytes::Bytes;
use portolan_kinds::select::{FieldSelector, LabelSelector, Labels};
use portolan_kinds::{Kind, KindRef, Status};
use portolan_store::Key;
use serde_json::Value;

use crate::object;
use crate::options::Options;

#[derive(Clone)]
pub(crate) struct Filter {
    kind: KindRef,
    labels: LabelSelector,
    fields: FieldSelector,
    /// The only one that the field selector lets through.
    name: Option<String>,
}

/// What filters have looked at in one object, so that the next need not. Keeps no more than that.
pub(crate) struct Facts {
    labels: OnceLock<Labels>,
    fields: Mutex<BTreeMap<String, String>>,
}

impl Facts {
    pub(crate) fn new() -> Self {
        Self { labels: OnceLock::new(), fields: Mutex::default() }
    }

    fn field(&self, kind: &Kind, stored: &Bytes, object: &OnceCell<Value>, field: &str) -> String {
        let mut fields = self.fields.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(value) = fields.get(field) {
            return value.clone();
        }
        let object = object.get_or_init(|| object::from_stored(kind, object::decode(stored)));
        let value = kind.field(object, field).unwrap_or_default();
        fields.insert(field.to_owned(), value.clone());
        value
    }
}

impl Filter {
    pub(crate) fn parse(kind: &KindRef, options: &Options) -> Result<Self, Status> {
        let labels = LabelSelector::parse(&options.label_selector)?;
        let fields = FieldSelector::parse(&options.field_selector, kind)?;
        let name = fields.name().map(str::to_owned);
        Ok(Self { kind: kind.clone(), labels, fields, name })
    }

    pub(crate) fn takes_all(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// Whether one name is all that it lets through.
    pub(crate) fn is_of_one(&self) -> bool {
        self.name.is_some()
    }

    pub(crate) fn matches(&self, key: &Key, stored: &Bytes) -> bool {
        self.matches_with(key, stored, &Facts::new())
    }

    /// `facts` are of this very object.
    pub(crate) fn matches_with(&self, key: &Key, stored: &Bytes, facts: &Facts) -> bool {
        if self.name.as_ref().is_some_and(|name| key.name() != name) {
            return false;
        }
        let object = OnceCell::new();
        let fields =
            self.fields.matches((key.namespace(), key.name()), |field| facts.field(&self.kind, stored, &object, field));
        fields && (self.labels.is_empty() || self.labels.matches(facts.labels.get_or_init(|| object::labels(stored))))
    }
}
