//! How the bytes of a packet lie in descriptors.

use vsock_packet::HEADER_LEN;

/// The cut of a packet, header first, into the pieces of a descriptor chain.
///
/// The specification lets a device assume nothing about it (§2.7.4), so every layout
/// carries every packet.
///
/// ```
/// use vsock_testkit::Layout;
///
/// // A header and 100 bytes of payload:
/// assert_eq!(Layout::whole().cut(144), [144]);
/// assert_eq!(Layout::linux().cut(144), [44, 100]);
/// assert_eq!(Layout::payload_in(3).cut(144), [44, 34, 33, 33]);
/// assert_eq!(Layout::pieces([10, 0, 40]).cut(144), [10, 0, 40, 94]);
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Layout {
    cut: Cut,
    indirect: bool,
    across_regions: bool,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Cut {
    Pieces(Vec<usize>),
    PayloadIn(usize),
}

impl Layout {
    /// Header and payload in one descriptor.
    pub fn whole() -> Self {
        Self::pieces([])
    }

    /// The header alone, then the payload in one descriptor, as Linux sends.
    pub fn linux() -> Self {
        Self::pieces([HEADER_LEN])
    }

    /// The header alone, then the payload in `count` descriptors of about equal length.
    pub fn payload_in(count: usize) -> Self {
        Self {
            cut: Cut::PayloadIn(count),
            indirect: false,
            across_regions: false,
        }
    }

    /// Pieces of these lengths, which may be zero; what remains is one more piece. A
    /// packet that is shorter than the pieces leaves the last ones out.
    pub fn pieces(lengths: impl Into<Vec<usize>>) -> Self {
        Self {
            cut: Cut::Pieces(lengths.into()),
            indirect: false,
            across_regions: false,
        }
    }

    /// The same pieces in an indirect table.
    #[must_use]
    pub fn indirect(mut self) -> Self {
        self.indirect = true;
        self
    }

    /// The same pieces, those of two bytes and more lying across two touching memory
    /// regions as long as there are boundaries left.
    #[must_use]
    pub fn across_regions(mut self) -> Self {
        self.across_regions = true;
        self
    }

    /// Whether the pieces are listed in an indirect table.
    pub fn is_indirect(&self) -> bool {
        self.indirect
    }

    /// Whether pieces lie across memory regions.
    pub fn is_across_regions(&self) -> bool {
        self.across_regions
    }

    /// The lengths of the pieces of a packet of `total` bytes, header included.
    pub fn cut(&self, total: usize) -> Vec<usize> {
        let (mut lengths, mut left) = (Vec::new(), total);
        let mut take = |wanted: usize| {
            let len = wanted.min(left);
            left -= len;
            if len > 0 || wanted == 0 {
                lengths.push(len);
            }
        };
        match &self.cut {
            Cut::Pieces(pieces) => pieces.iter().for_each(|&len| take(len)),
            Cut::PayloadIn(count) => {
                take(HEADER_LEN);
                let payload = total.saturating_sub(HEADER_LEN);
                (0..*count).for_each(|i| take((payload + count - 1 - i) / count));
            }
        }
        if left > 0 {
            lengths.push(left);
        }
        lengths
    }
}

impl Default for Layout {
    fn default() -> Self {
        Self::linux()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_in_one_piece() {
        for total in [44, 45, 144, 65580] {
            for layout in [
                Layout::whole(),
                Layout::linux(),
                Layout::payload_in(64),
                Layout::pieces([1, 43, 0, 7]),
            ] {
                assert_eq!(layout.cut(total).iter().sum::<usize>(), total, "{layout:?}");
            }
        }
    }

    #[test]
    fn a_header_without_payload_is_one_piece_as_linux_sends_it() {
        assert_eq!(Layout::linux().cut(44), [44]);
    }
}
