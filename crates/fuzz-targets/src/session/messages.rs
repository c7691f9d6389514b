//! Messages of the vhost-user protocol, as they lie on the socket.

use arbitrary::Arbitrary;

use super::frontend::{MEMORY_SIZE, USER};
use crate::packets::Bytes;

/// The requests a frontend makes most.
pub(super) mod request {
    pub(crate) const GET_FEATURES: u32 = 1;
    pub(crate) const SET_FEATURES: u32 = 2;
    pub(crate) const SET_OWNER: u32 = 3;
    pub(crate) const SET_MEM_TABLE: u32 = 5;
    pub(crate) const SET_VRING_NUM: u32 = 8;
    pub(crate) const SET_VRING_ADDR: u32 = 9;
    pub(crate) const SET_VRING_BASE: u32 = 10;
    pub(crate) const GET_VRING_BASE: u32 = 11;
    pub(crate) const SET_VRING_KICK: u32 = 12;
    pub(crate) const SET_VRING_CALL: u32 = 13;
    pub(crate) const SET_VRING_ERR: u32 = 14;
    pub(crate) const GET_PROTOCOL_FEATURES: u32 = 15;
    pub(crate) const SET_PROTOCOL_FEATURES: u32 = 16;
    pub(crate) const SET_VRING_ENABLE: u32 = 18;
    pub(crate) const GET_CONFIG: u32 = 24;
    pub(crate) const SET_CONFIG: u32 = 25;
    pub(crate) const ADD_MEM_REG: u32 = 37;
    pub(crate) const REM_MEM_REG: u32 = 38;
}

/// A message, which may be wrong in any way.
#[derive(Arbitrary, Debug)]
pub(super) struct Message {
    pub(super) request: u8,
    pub(super) body: Body,
    pub(super) fds: Vec<Fd>,
    pub(super) flags: Flags,
    /// A length that is not the body's.
    size: Option<Bytes>,
}

#[derive(Arbitrary, Debug)]
pub(super) enum Flags {
    Plain,
    WantsReply,
    Any(u32),
}

/// A descriptor that goes along.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(super) enum Fd {
    Memory,
    Event(u8),
    PipeReader,
    PipeWriter,
    Socket,
    Null,
}

/// What a message says.
#[derive(Arbitrary, Debug)]
pub(super) enum Body {
    /// What the request is to have, made of these.
    Fitting(Numbers),
    Bytes(Vec<u8>),
}

#[derive(Arbitrary, Debug)]
pub(super) struct Numbers {
    queue: u8,
    number: Bytes,
    places: [Place; 3],
    regions: Vec<Region>,
}

/// An address of the frontend's.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Place {
    InMemory(u16),
    AtTheEnd(u8),
    Any(u64),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
struct Region {
    guest: Place,
    size: Size,
    user: Place,
    offset: Size,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Size {
    All,
    None,
    Pages(u8),
    Any(u64),
}

impl Place {
    fn value(self) -> u64 {
        match self {
            Self::InMemory(offset) => USER + u64::from(offset),
            Self::AtTheEnd(distance) => USER + MEMORY_SIZE - u64::from(distance),
            Self::Any(address) => address,
        }
    }

    /// The same, as the guest counts.
    fn guest(self) -> u64 {
        self.value().wrapping_sub(USER)
    }
}

impl Size {
    fn value(self) -> u64 {
        match self {
            Self::All => MEMORY_SIZE,
            Self::None => 0,
            Self::Pages(count) => u64::from(count) << 12,
            Self::Any(size) => size,
        }
    }
}

impl Region {
    fn words(self) -> [u64; 4] {
        let (guest, user) = (self.guest.guest(), self.user.value());
        [guest, self.size.value(), user, self.offset.value()]
    }
}

impl Message {
    /// The message as it is sent.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let request = u32::from(self.request);
        let body = match &self.body {
            Body::Fitting(numbers) => numbers.body(request),
            Body::Bytes(bytes) => bytes.clone(),
        };
        let flags = match self.flags {
            Flags::Plain => 1,
            Flags::WantsReply => 9,
            Flags::Any(flags) => flags,
        };
        let mut bytes = words(&[request, flags, body.len() as u32]);
        if let Some(size) = self.size {
            bytes[8..].copy_from_slice(&size.value().to_le_bytes());
        }
        bytes.extend(body);
        bytes
    }
}

/// A message in good order.
pub(super) fn message(request: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = words(&[request, 1, body.len() as u32]);
    bytes.extend(body);
    bytes
}

pub(super) fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

pub(super) fn longs(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

impl Numbers {
    fn body(&self, request: u32) -> Vec<u8> {
        let (queue, number) = (u32::from(self.queue), self.number.value());
        let [one, two, three] = self.places.map(Place::value);
        match request {
            request::SET_MEM_TABLE => {
                let count = self.regions.len().min(16);
                let regions = self.regions[..count].iter();
                let mut bytes = words(&[count as u32, 0]);
                bytes.extend(regions.flat_map(|region| longs(&region.words())));
                bytes
            }
            request::ADD_MEM_REG | request::REM_MEM_REG => {
                let region = self.regions.first().map_or([0; 4], |region| region.words());
                [longs(&[0]), longs(&region)].concat()
            }
            request::SET_VRING_ADDR => {
                let mut bytes = words(&[queue, number & 1]);
                bytes.extend(longs(&[one, two, three, 0]));
                bytes
            }
            request::SET_VRING_NUM
            | request::SET_VRING_BASE
            | request::GET_VRING_BASE
            | request::SET_VRING_ENABLE => words(&[queue, number]),
            request::SET_VRING_KICK | request::SET_VRING_CALL | request::SET_VRING_ERR => {
                // Bit 8: no descriptor comes along.
                longs(&[u64::from(queue) | u64::from(number & 1) << 8])
            }
            request::GET_CONFIG | request::SET_CONFIG => {
                let size = number & 0xff;
                let mut bytes = words(&[queue, size, 0]);
                bytes.resize(12 + size as usize, 0);
                bytes
            }
            request::SET_FEATURES | request::SET_PROTOCOL_FEATURES => longs(&[one]),
            _ => Vec::new(),
        }
    }
}
