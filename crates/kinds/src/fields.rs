//! Turns a field selector's field into its value in an object.

/// The kind cannot be selected by this field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("field label not supported: {field}")]
pub struct UnsupportedField {
    pub field: String,
}
