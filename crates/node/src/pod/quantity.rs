//! A Kubernetes quantity (`500m`, `1.5`, `128Mi`, `1e3`) -> a whole number, rounded up as the kubelet does.
//!
//! Source: the API reference for `resource.Quantity`. Nonsense gives `None`; the API server refuses it anyway.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Thousandths: of a CPU, for instance.
pub(crate) fn milli(quantity: &Quantity) -> Option<u64> {
    parse(&quantity.0, 1000)
}

pub(crate) fn bytes(quantity: &Quantity) -> Option<u64> {
    parse(&quantity.0, 1)
}

fn parse(text: &str, scale: u128) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if fraction.len() > 18 || whole.len() > 19 || (whole.is_empty() && fraction.is_empty()) {
        return None;
    }
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    let (up, down) = factor(suffix)?;
    let below = down.checked_mul(10u128.checked_pow(u32::try_from(fraction.len()).ok()?)?)?;
    u64::try_from(digits.checked_mul(up)?.checked_mul(scale)?.div_ceil(below)).ok()
}

fn factor(suffix: &str) -> Option<(u128, u128)> {
    let ten = |power: u32| 10u128.checked_pow(power);
    Some(match suffix {
        "" => (1, 1),
        "n" => (1, ten(9)?),
        "u" => (1, ten(6)?),
        "m" => (1, 1000),
        "k" => (1000, 1),
        "M" => (ten(6)?, 1),
        "G" => (ten(9)?, 1),
        "T" => (ten(12)?, 1),
        "P" => (ten(15)?, 1),
        "E" => (ten(18)?, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        _ => match suffix.strip_prefix(['e', 'E'])?.parse::<i32>().ok()? {
            power @ 0.. => (ten(power.unsigned_abs())?, 1),
            power => (1, ten(power.unsigned_abs())?),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities() {
        for (text, whole, thousandths) in [
            ("0", 0, 0),
            ("1", 1, 1000),
            ("500m", 1, 500),
            ("1.5", 2, 1500),
            ("0.1", 1, 100),
            ("128Mi", 128 << 20, (128 << 20) * 1000),
            ("1.5Gi", 3 << 29, (3 << 29) * 1000),
            ("1k", 1000, 1_000_000),
            ("1e3", 1000, 1_000_000),
            ("12e-1", 2, 1200),
            ("100n", 1, 1),
        ] {
            let quantity = Quantity(text.into());
            assert_eq!((bytes(&quantity), milli(&quantity)), (Some(whole), Some(thousandths)), "{text}");
        }
        for text in ["", "Mi", "1Zi", "-1", "1.2.3", "99999999999999999999", "1e40"] {
            assert_eq!(bytes(&Quantity(text.into())), None, "{text}");
        }
    }
}
