//! Kubernetes quantities ("250m", "64Mi") -> whole numbers.
//!
//! Invariant: total; nonsense is `None`, and too large saturates. Fractions round up, as a request must.
//!
//! Deliberately not here: writing quantities, and telling which spelling is canonical.
//! Source: the resource.Quantity format in the Kubernetes API reference.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// In thousandths of the unit: millicores for cpu.
pub fn milli(quantity: &Quantity) -> Option<i64> {
    parse(&quantity.0, 1000)
}

/// In whole units: bytes for memory, pieces for pods.
pub fn whole(quantity: &Quantity) -> Option<i64> {
    parse(&quantity.0, 1)
}

fn parse(text: &str, scale: i128) -> Option<i64> {
    let end = text.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-'))).unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (negative, digits) = match number.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, number.strip_prefix('+').unwrap_or(number)),
    };
    let (integer, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let all_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if (integer.is_empty() && fraction.is_empty()) || !all_digits(integer) || !all_digits(fraction) {
        return None;
    }
    let (multiplier, divisor) = factor(suffix)?;
    // Further digits are below any unit that is asked for.
    let fraction = &fraction[..fraction.len().min(12)];
    let mantissa: i128 =
        if integer.len() > 18 { i128::from(i64::MAX) } else { format!("{integer}{fraction}").parse().ok()? };
    let divisor = divisor.checked_mul(10_i128.pow(u32::try_from(fraction.len()).ok()?))?;
    let value = mantissa.saturating_mul(multiplier).saturating_mul(scale);
    let rounded = value.saturating_add(divisor - 1) / divisor;
    let clamped = i64::try_from(rounded).unwrap_or(i64::MAX);
    Some(if negative { -clamped } else { clamped })
}

fn factor(suffix: &str) -> Option<(i128, i128)> {
    Some(match suffix {
        "" => (1, 1),
        "n" => (1, 1_000_000_000),
        "u" => (1, 1_000_000),
        "m" => (1, 1000),
        "k" => (1000, 1),
        "M" => (1_000_000, 1),
        "G" => (1_000_000_000, 1),
        "T" => (1_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000, 1),
        "E" => (1_000_000_000_000_000_000, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        exponent => {
            let power: i32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            let ten = 10_i128.pow(power.unsigned_abs().min(18));
            if power < 0 { (1, ten) } else { (ten, 1) }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities() {
        for (text, expected_milli, expected_whole) in [
            ("1", Some(1000), Some(1)),
            ("250m", Some(250), Some(1)),
            ("0.5", Some(500), Some(1)),
            (".5", Some(500), Some(1)),
            ("1.5Gi", Some(1_610_612_736_000), Some(1_610_612_736)),
            ("64Mi", Some(67_108_864_000), Some(67_108_864)),
            ("1e3", Some(1_000_000), Some(1000)),
            ("1E", Some(i64::MAX), Some(1_000_000_000_000_000_000)),
            ("100n", Some(1), Some(1)),
            ("-1", Some(-1000), Some(-1)),
            ("0", Some(0), Some(0)),
            ("99999999999999999999", Some(i64::MAX), Some(i64::MAX)),
            ("", None, None),
            ("Mi", None, None),
            ("1x", None, None),
            ("1.2.3", None, None),
            ("1-2", None, None),
        ] {
            let quantity = Quantity(text.into());
            assert_eq!((milli(&quantity), whole(&quantity)), (expected_milli, expected_whole), "{text:?}");
        }
    }
}
