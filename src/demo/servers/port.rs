//! Ports that are free, and stay so while others look for one too.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};

use super::ServerError;

/// Where to look: below the ports that the system hands out by itself (from 32768 on), so low that
/// the cluster bus at + 10000 is below them too, and so narrow that no bus falls in between.
const FIRST: u16 = 10_000;
const COUNT: u16 = 10_000;
const BUS: u16 = 10_000;

/// A port of 127.0.0.1 that no other holder of a `Port` gets, in this process or another. The claim
/// is the UDP port of that number: the system knows who holds it, and frees it with its holder.
#[derive(Debug)]
pub struct Port {
    number: u16,
    _claims: Vec<UdpSocket>,
}

impl Port {
    /// This very port, if it is free.
    #[must_use]
    pub fn claim(number: u16) -> Option<Self> {
        Self::hold(&[number])
    }

    /// This very port, if it is free and so is the one for the cluster bus.
    #[must_use]
    pub fn claim_with_bus(number: u16) -> Option<Self> {
        Self::hold(&[number, number.checked_add(BUS)?])
    }

    fn hold(numbers: &[u16]) -> Option<Self> {
        let udp = |number: &u16| UdpSocket::bind((Ipv4Addr::LOCALHOST, *number)).ok();
        let claims = numbers.iter().map(udp).collect::<Option<_>>()?;
        let free = numbers.iter().all(|number| is_free(*number));
        free.then_some(Self { number: *numbers.first()?, _claims: claims })
    }

    #[must_use]
    pub fn number(&self) -> u16 {
        self.number
    }
}

/// A port that is free, with the one for a cluster bus. The search starts anywhere, so that a port is not soon used again by those
/// who may still remember its last owner.
pub fn free_port() -> Result<Port, ServerError> {
    let start = getrandom::u32().map_err(|_| ServerError::Random)?;
    let offsets = (0..u32::from(COUNT)).map(|i| start.wrapping_add(i) % u32::from(COUNT));
    let mut numbers = offsets.filter_map(|offset| Some(FIRST + u16::try_from(offset).ok()?));
    numbers.find_map(Port::claim_with_bus).ok_or(ServerError::NoPort)
}

/// Whether a server could listen on this port of 127.0.0.1 now.
fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn nobody_gets_a_port_that_somebody_holds() {
        let held: Vec<Port> = (0..200).map(|_| free_port().unwrap()).collect();
        let numbers: BTreeSet<u16> = held.iter().map(Port::number).collect();
        assert_eq!(numbers.len(), held.len());
        assert!(numbers.iter().all(|n| (FIRST..FIRST + COUNT).contains(n)));
        assert!(Port::claim(held[0].number()).is_none());
        assert!(Port::claim_with_bus(60_000).is_none(), "there is no port for the bus");
    }
}
