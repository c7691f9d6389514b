//! Memory that is there when it is needed.
//!
//! A virtual machine may give free memory back to its hypervisor, in large blocks (free page
//! reporting). To use such a page again costs several microseconds, and what is written to a
//! socket takes new pages all the time. Whether they are new to the machine, too, decides
//! then: the same stream came to 500 and to 5,000 MiB/s within minutes.
//!
//! So the run takes some of what is free, uses it, and gives all but one page in each block
//! back, and does so again before each part of a round. What is free between those pages is too
//! small to be given away.

use std::fs;

use anyhow::{Context, Result};

/// What a run does meanwhile.
pub(crate) const NAME: &str = "warming the memory";
/// How much is warmed, in blocks at most: more than is measured with. With nearly all that is
/// free in small pieces, the first streams came to 400 to 1,100 MiB/s; probably the kernel then
/// has no whole blocks for sockets, and takes programs' pieces.
const MOST: usize = 3 << 10;
/// Well below the smallest that is given away (4 MiB on x86-64), and large enough for the
/// allocator to map it by itself.
const BLOCK: usize = 1 << 20;
/// So much of what is free is left alone.
const EIGHTH: usize = 8;

/// Free memory stays warm while this lives.
#[derive(Debug)]
pub(crate) struct Warm {
    _pages: Vec<Vec<u8>>,
}

impl Warm {
    /// Warms what is free, which takes up to three seconds for each GiB.
    pub(crate) fn up() -> Result<Self> {
        let free = free()?;
        let blocks = MOST.min((free - free / EIGHTH) / BLOCK);
        // All of them before the first is made smaller, or that would serve for the next.
        let mut pages: Vec<_> = (0..blocks).map(|_| vec![1_u8; BLOCK]).collect();
        for page in &mut pages {
            page.truncate(1);
            page.shrink_to_fit();
        }
        Ok(Self { _pages: pages })
    }
}

/// What nobody uses, in bytes.
fn free() -> Result<usize> {
    let path = "/proc/meminfo";
    let all = fs::read_to_string(path).with_context(|| format!("read {path}"))?;
    let line = all.lines().find_map(|line| line.strip_prefix("MemFree:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<usize>().ok());
    Ok(kib.with_context(|| format!("find MemFree in {path}"))? << 10)
}
