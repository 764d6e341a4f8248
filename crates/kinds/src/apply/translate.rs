//! Objects as other versions of their kind have them, for what cannot know that by itself: a webhook makes them.
//!
//! Invariant: who is answered with nothing has been written down, and may come again with the same objects once the
//! answers are there. So what decides stays pure, and whoever asks the webhook stands outside.

use std::borrow::Cow;
use std::cell::RefCell;

use serde_json::Value;

use crate::look::{Look, map_of};

/// An object, and the version that it is wanted as.
pub type Wanted = (String, Value);

#[derive(Debug, Default)]
pub struct Translations {
    known: Vec<(Wanted, Value)>,
    wanted: RefCell<Vec<Wanted>>,
}

impl Translations {
    /// The object as that version, if that is known by now.
    pub(super) fn find<'a>(&'a self, api_version: &str, object: &'a Value) -> Option<Cow<'a, Value>> {
        if object.text("apiVersion") == api_version {
            return Some(Cow::Borrowed(object));
        }
        // Nothing is the same in every version.
        if object.as_object().is_none_or(|map| map.keys().all(|name| matches!(name.as_str(), "apiVersion" | "kind"))) {
            let mut nothing = object.clone();
            map_of(&mut nothing).insert("apiVersion".into(), api_version.into());
            return Some(Cow::Owned(nothing));
        }
        let is_it = |(version, of): &Wanted| version == api_version && of == object;
        if let Some((_, translated)) = self.known.iter().find(|(wanted, _)| is_it(wanted)) {
            return Some(Cow::Borrowed(translated));
        }
        let mut wanted = self.wanted.borrow_mut();
        if !wanted.iter().any(is_it) {
            wanted.push((api_version.to_owned(), object.clone()));
        }
        None
    }

    /// What was asked for and not known.
    pub fn take_wanted(&mut self) -> Vec<Wanted> {
        std::mem::take(self.wanted.get_mut())
    }

    pub fn learn(&mut self, wanted: Wanted, translated: Value) {
        self.known.push((wanted, translated));
    }
}
