//! What a client is to be warned of: gathered while its request is carried out, and told however that ends.
//!
//! Source: `WarningRecorder` of apiserver; what a try that lost a race had to say is said once.

use std::sync::{Mutex, MutexGuard, PoisonError};

#[derive(Default)]
pub(crate) struct Warnings(Mutex<Vec<String>>);

impl Warnings {
    fn all(&self) -> MutexGuard<'_, Vec<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add(&self, texts: impl IntoIterator<Item = String>) {
        let mut all = self.all();
        for text in texts {
            if !all.contains(&text) {
                all.push(text);
            }
        }
    }

    pub(crate) fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.all())
    }
}
