//! Resource quantities (`100m`, `1.5Gi`): reading, comparing and writing them in the one canonical form.
//!
//! Invariant: `parse(x.to_string()) == x`. Values are kept in billionths, which is as fine as quantities go; finer
//! ones round up, as upstream. Source: apimachinery `pkg/api/resource`.

use std::fmt;

const NANO: i128 = 1_000_000_000;

/// How the quantity was written, and so is written again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Binary,
    Decimal,
    Exponent,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Quantity {
    /// In billionths.
    nano: i128,
    form: Form,
}

/// What upstream says of a text that is no quantity.
pub(crate) const BAD_QUANTITY: &str =
    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";

const BINARY: [(&str, u32); 6] = [("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40), ("Pi", 50), ("Ei", 60)];
const DECIMAL: [(&str, i32); 10] =
    [("n", -9), ("u", -6), ("m", -3), ("", 0), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18)];

impl Quantity {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (negative, unsigned) = match text.as_bytes().first()? {
            b'-' => (true, &text[1..]),
            b'+' => (false, &text[1..]),
            _ => (false, text),
        };
        let end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
        let (number, suffix) = unsigned.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return None;
        }
        let (form, scale, shift) = if let Some((_, shift)) = BINARY.iter().find(|(name, _)| *name == suffix) {
            (Form::Binary, 0, *shift)
        } else if let Some((_, scale)) = DECIMAL.iter().find(|(name, _)| *name == suffix) {
            (Form::Decimal, *scale, 0)
        } else {
            let exponent = suffix.strip_prefix(['e', 'E'])?;
            (Form::Exponent, exponent.parse::<i16>().ok()?.into(), 0)
        };
        // The digits as an integer with `fraction.len()` of them behind the point.
        let mut digits: i128 = 0;
        let mut behind = 0_i32;
        let mut rest = false;
        for (index, byte) in whole.bytes().chain(fraction.bytes()).enumerate() {
            let keep = index < whole.len() || behind < 18;
            if keep {
                digits = digits.checked_mul(10)?.checked_add(i128::from(byte - b'0'))?;
                behind += i32::from(index >= whole.len());
            } else {
                rest |= byte != b'0';
            }
        }
        digits = digits.checked_mul(1_i128.checked_shl(shift)?)?;
        let power = 9 + scale - behind;
        let mut nano = if power >= 0 {
            digits.checked_mul(10_i128.checked_pow(power.unsigned_abs())?)?
        } else {
            match 10_i128.checked_pow(power.unsigned_abs()) {
                Some(divisor) => {
                    rest |= digits % divisor != 0;
                    digits / divisor
                }
                None => {
                    rest |= digits != 0;
                    0
                }
            }
        };
        nano += i128::from(rest);
        Some(Self { nano: if negative { -nano } else { nano }, form })
    }

    pub(crate) fn is_negative(&self) -> bool {
        self.nano < 0
    }

    pub(crate) fn is_whole(&self) -> bool {
        self.nano % NANO == 0
    }

    pub(crate) fn from_integer(number: i64) -> Self {
        Self { nano: i128::from(number) * NANO, form: Form::Decimal }
    }

    pub(crate) fn sign(&self) -> i64 {
        i64::try_from(self.nano.signum()).unwrap_or_default()
    }

    pub(crate) fn as_integer(&self) -> Option<i64> {
        if self.is_whole() { i64::try_from(self.nano / NANO).ok() } else { None }
    }

    #[allow(clippy::cast_precision_loss, reason = "a float is as near as it gets")]
    pub(crate) fn as_float(&self) -> f64 {
        self.nano as f64 / NANO as f64
    }

    /// The sum, unless it is too large to be kept; written as `self` is.
    pub(crate) fn plus(&self, other: &Self) -> Option<Self> {
        Some(Self { nano: self.nano.checked_add(other.nano)?, form: self.form })
    }

    pub(crate) fn minus(&self, other: &Self) -> Option<Self> {
        Some(Self { nano: self.nano.checked_sub(other.nano)?, form: self.form })
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nano == other.nano
    }
}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.nano.cmp(&other.nano))
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nano == 0 {
            return f.write_str("0");
        }
        // Binary suffixes only where they lose nothing and make the number shorter.
        if self.form == Form::Binary && self.is_whole() && (self.nano / NANO).abs() >= 1024 {
            let mut number = self.nano / NANO;
            let mut suffix = "";
            for (name, _) in BINARY {
                if number % 1024 != 0 {
                    break;
                }
                number /= 1024;
                suffix = name;
            }
            return write!(f, "{number}{suffix}");
        }
        let mut number = self.nano;
        let mut exponent = -9;
        while number % 1000 == 0 && exponent < 18 {
            number /= 1000;
            exponent += 3;
        }
        match self.form {
            Form::Exponent if exponent != 0 => write!(f, "{number}e{exponent}"),
            _ => {
                let suffix = DECIMAL.iter().find(|(_, scale)| *scale == exponent).map_or("", |(name, _)| name);
                write!(f, "{number}{suffix}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_forms() {
        for (text, canonical) in [
            ("0", "0"),
            ("100m", "100m"),
            ("0.1", "100m"),
            ("1000m", "1"),
            ("1024Mi", "1Gi"),
            ("1536Mi", "1536Mi"),
            ("1.5Gi", "1536Mi"),
            ("0.5Ki", "512"),
            ("1000", "1k"),
            ("1024", "1024"),
            ("128974848", "128974848"),
            ("12e6", "12e6"),
            ("1e3", "1e3"),
            ("-1", "-1"),
            ("+2", "2"),
            (".5", "500m"),
            ("1E", "1E"),
            ("1n", "1n"),
            ("0.0000000001", "1n"),
        ] {
            let quantity = Quantity::parse(text).unwrap_or_else(|| panic!("{text}"));
            assert_eq!(quantity.to_string(), canonical, "{text}");
            assert_eq!(Quantity::parse(canonical), Some(quantity));
        }
        for text in ["", "x", "1x", "1.2.3", "1KiB", "Mi", ".", "1e", "1 ", "99999999999999999999999999999999999999999"]
        {
            assert!(Quantity::parse(text).is_none(), "{text}");
        }
        assert!(Quantity::parse("1").unwrap() < Quantity::parse("1001m").unwrap());
    }
}
