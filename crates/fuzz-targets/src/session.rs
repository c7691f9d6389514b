//! A vhost-user session with a live server, over its real socket: messages in any order,
//! of any content, with any descriptors; rings and packets of any content in the memory
//! behind them; and host applications that come and go meanwhile.
//!
//! Afterwards the server serves the next frontend, has no descriptors and threads more
//! than before, and another guest has not noticed.

mod driver;
mod frontend;
mod house;
mod messages;

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, OnceLock, PoisonError};

use arbitrary::Arbitrary;

use self::driver::{Driver, Offer, Say};
use self::frontend::Frontend;
use self::house::House;
use self::messages::Message;
use crate::steps::Steps;

/// Applications that connect in one input.
const MAX_CLIENTS: usize = 8;
/// Sessions in one input.
const MAX_SESSIONS: usize = 4;

#[derive(Arbitrary, Debug)]
enum Step {
    Message(Message),
    /// Bytes that are no message, perhaps.
    Bytes(Vec<u8>),
    /// All that a frontend says to begin with.
    SetUp,
    Packet(Say),
    RxBuffers(u8),
    Offer(Offer),
    Write {
        at: u16,
        bytes: [u8; 16],
    },
    /// The frontend takes memory back, or gives more.
    Resize {
        pages: u8,
    },
    Kick(u8),
    Client(Vec<u8>),
    ClientLeaves,
    /// A client that asks for a port in good order.
    Ask(u8),
    /// The frontend leaves, and another one comes.
    Again,
}

/// Runs an input.
pub(crate) fn run(data: &[u8]) {
    let _alone = crate::alone();
    static HOUSE: OnceLock<Mutex<House>> = OnceLock::new();
    let house = HOUSE.get_or_init(|| Mutex::new(House::new()));
    let mut house = house.lock().unwrap_or_else(PoisonError::into_inner);
    let mut steps = Steps::new(data);
    let mut scenario = Scenario::new(&house);
    while let Some(step) = steps.next::<Step>() {
        scenario.take(&house, &step);
    }
    drop(scenario);
    house.check();
}

struct Scenario {
    frontend: Frontend,
    driver: Driver,
    clients: Vec<UnixStream>,
    sessions: usize,
}

impl Scenario {
    fn new(house: &House) -> Self {
        Self {
            frontend: Frontend::connect(&house.socket()),
            driver: Driver::new(),
            clients: Vec::new(),
            sessions: 1,
        }
    }

    fn take(&mut self, house: &House, step: &Step) {
        let Self {
            frontend, driver, ..
        } = self;
        match step {
            Step::Message(message) => frontend.say(message),
            Step::Bytes(bytes) => frontend.send(bytes, &[]),
            Step::SetUp => {
                driver.start(frontend.memory());
                frontend.set_up();
            }
            Step::Packet(say) => driver.send(frontend, say),
            Step::RxBuffers(count) => driver.refill(frontend, *count),
            Step::Offer(offer) => driver.offer(frontend, offer),
            Step::Write { at, bytes } => frontend.memory().write((*at).into(), bytes),
            Step::Resize { pages } => frontend.memory().resize(u64::from(*pages) << 12),
            Step::Kick(which) => frontend.kick((*which).into()),
            Step::Client(text) => self.connect(house, text),
            Step::ClientLeaves => drop(self.clients.pop()),
            Step::Ask(port) => self.connect(house, format!("CONNECT {port}\nhello").as_bytes()),
            Step::Again if self.sessions < MAX_SESSIONS => {
                self.sessions += 1;
                self.frontend = Frontend::connect(&house.socket());
            }
            Step::Again => (),
        }
    }

    fn connect(&mut self, house: &House, text: &[u8]) {
        if self.clients.len() < MAX_CLIENTS
            && let Ok(mut client) = UnixStream::connect(house.uds_path())
        {
            let _ = client.set_nonblocking(true);
            let _ = client.write(text);
            self.clients.push(client);
        }
    }
}
