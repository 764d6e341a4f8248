//! Amounts of resources.

use serde_json::Value;

use super::Errors;
use crate::look::{Look, Path};
use crate::names;
use crate::quantity::Quantity;

/// Resources that only whole numbers make sense of.
fn counted(resource: &str) -> bool {
    !matches!(resource, "cpu" | "memory" | "ephemeral-storage" | "storage") && !resource.starts_with("hugepages-")
}

/// Whether more may be used than was asked for.
fn overcommits(resource: &str) -> bool {
    let native = !resource.contains('/') || resource.contains("kubernetes.io/");
    native && !resource.starts_with("hugepages-")
}

/// One quantity in a list of resources.
pub(super) fn quantity(errors: &mut Errors, resource: &str, text: &str, path: &Path<'_>) -> Option<Quantity> {
    let quantity = Quantity::parse(text)?;
    if quantity.is_negative() {
        errors.invalid(path, text, "must be greater than or equal to 0");
    }
    if counted(resource) && !quantity.is_whole() {
        errors.invalid(path, text, "must be an integer");
    }
    Some(quantity)
}

pub(super) fn resources(errors: &mut Errors, resources: &Value, path: &Path<'_>) {
    for list in ["limits", "requests"] {
        for (name, value) in resources.entries(list) {
            let here = path.field(list);
            let here = here.key(name);
            errors.each(&here, name, names::qualified_name(name));
            let standard = matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-");
            if !name.contains('/') && !standard {
                errors.invalid(&here, name, "must be a standard resource for containers");
            }
            let Some(amount) = quantity(errors, name, value.as_str().unwrap_or_default(), &here) else { continue };
            if list == "limits" {
                continue;
            }
            let limit_text = resources["limits"].text(name);
            match Quantity::parse(limit_text) {
                Some(limit) if amount != limit && !overcommits(name) => errors.invalid(
                    &path.field("requests"),
                    amount.to_string(),
                    format!("must be equal to {name} limit of {limit}"),
                ),
                Some(limit) if amount > limit => errors.invalid(
                    &path.field("requests"),
                    amount.to_string(),
                    format!("must be less than or equal to {name} limit of {limit}"),
                ),
                None if !overcommits(name) => {
                    errors.required(&path.field("limits"), "Limit must be set for non overcommitable resources")
                }
                _ => {}
            }
        }
    }
}
