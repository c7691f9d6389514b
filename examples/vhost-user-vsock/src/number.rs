//! Numbers as operators write them: decimal, without sign or unit.

use std::str::FromStr;

/// The number in `text`, if that is decimal digits only and the number fits. What the
/// standard library reads may have a plus sign.
pub(crate) fn decimal<T: FromStr>(text: &str) -> Option<T> {
    let has_digits_only = text.bytes().all(|byte| byte.is_ascii_digit());
    has_digits_only.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_digits_and_nothing_else() {
        assert_eq!(decimal::<u32>("0"), Some(0));
        assert_eq!(decimal::<u32>("4294967295"), Some(u32::MAX));
        for wrong in [
            "",
            "+3",
            "-3",
            " 3",
            "3 ",
            "0x3",
            "3k",
            "1_000",
            "٣",
            "4294967296",
        ] {
            assert_eq!(decimal::<u32>(wrong), None, "{wrong}");
        }
    }
}
