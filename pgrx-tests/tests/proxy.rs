//! The fault proxy in front of a plain echo server.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use rowsync_harness::{Direction, Proxy, await_until};

/// The port of a server that sends back what it gets, for as long as the process lives.
fn echo_server() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || std::io::copy(&mut &stream, &mut &stream));
        }
    });
    port
}

fn proxy() -> Proxy {
    Proxy::start(echo_server()).unwrap()
}

fn connect(proxy: &Proxy) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", proxy.port())).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    stream
}

fn echo(stream: &mut TcpStream, bytes: &[u8]) -> std::io::Result<()> {
    stream.write_all(bytes)?;
    let mut back = vec![0; bytes.len()];
    stream.read_exact(&mut back)?;
    assert_eq!(back, bytes);
    Ok(())
}

fn is_reset(result: std::io::Result<()>) -> bool {
    matches!(
        result.unwrap_err().kind(),
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
    )
}

#[test]
fn bytes_pass_and_are_counted() {
    let proxy = proxy();
    let mut stream = connect(&proxy);
    for _ in 0..3 {
        echo(&mut stream, b"hello").unwrap();
    }
    await_until(Duration::from_secs(5), "the count", || {
        proxy.bytes(Direction::ToClient) == 15
    });
    assert_eq!(proxy.bytes(Direction::ToServer), 15);
    assert_eq!(proxy.connections_total(), 1);
    assert_eq!(proxy.exchanges(), 3);
}

#[test]
fn the_end_of_one_direction_is_passed_on_and_the_other_stays_open() {
    let proxy = proxy();
    let mut stream = connect(&proxy);
    stream.write_all(b"last words").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut back = String::new();
    stream.read_to_string(&mut back).unwrap();
    assert_eq!(back, "last words");
}

#[test]
fn a_delay_costs_latency_each_way() {
    let proxy = proxy();
    let mut stream = connect(&proxy);
    echo(&mut stream, b"warm").unwrap();
    proxy.set_delay(Duration::from_millis(50));
    let start = Instant::now();
    echo(&mut stream, b"slow").unwrap();
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(100), "{took:?}");
    assert!(took < Duration::from_millis(500), "{took:?}");
}

#[test]
fn a_delay_does_not_throttle() {
    let proxy = proxy();
    let mut stream = connect(&proxy);
    proxy.set_delay(Duration::from_millis(50));
    let data = vec![7; 32 << 20];
    let mut writer = stream.try_clone().unwrap();
    let start = Instant::now();
    let sender = thread::spawn(move || {
        writer.write_all(&data).unwrap();
        data
    });
    let mut back = vec![0; 32 << 20];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(back, sender.join().unwrap());
    // 512 chunks, each delayed by itself, would take a minute.
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn frozen_connections_stay_open_and_silent_until_thawed() {
    let proxy = proxy();
    let mut stream = connect(&proxy);
    echo(&mut stream, b"warm").unwrap();
    proxy.freeze();
    let mut late = connect(&proxy);
    for stream in [&mut stream, &mut late] {
        stream
            .set_read_timeout(Some(Duration::from_millis(100)))
            .unwrap();
        stream.write_all(b"anyone?").unwrap();
        assert_eq!(
            stream.read(&mut [0; 16]).unwrap_err().kind(),
            ErrorKind::WouldBlock
        );
    }
    proxy.thaw();
    for stream in [&mut stream, &mut late] {
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        let mut back = [0; 7];
        stream.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"anyone?");
    }
    assert_eq!(proxy.connections_total(), 2);
}

#[test]
fn a_frozen_sender_sees_its_buffers_fill() {
    let proxy = proxy();
    let mut stream = connect(&proxy);
    echo(&mut stream, b"warm").unwrap();
    proxy.freeze();
    stream
        .set_write_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    let result = stream.write_all(&vec![0; 64 << 20]);
    assert_eq!(result.unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
fn a_cut_resets_and_a_new_connection_works() {
    let proxy = proxy();
    let mut stream = connect(&proxy);
    echo(&mut stream, b"warm").unwrap();
    proxy.cut();
    assert!(is_reset(echo(&mut stream, b"gone")));
    echo(&mut connect(&proxy), b"back").unwrap();
}

#[test]
fn a_frozen_connection_can_be_cut() {
    let proxy = proxy();
    let mut stream = connect(&proxy);
    echo(&mut stream, b"warm").unwrap();
    proxy.freeze();
    stream.write_all(b"anyone?").unwrap();
    proxy.cut();
    assert!(is_reset(stream.read_exact(&mut [0])));
}

#[test]
fn refused_until_accepted_again_on_the_same_port() {
    let proxy = proxy();
    let mut stream = connect(&proxy);
    echo(&mut stream, b"warm").unwrap();
    proxy.refuse();
    let refused = TcpStream::connect(("127.0.0.1", proxy.port()));
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused);
    echo(&mut stream, b"still here").unwrap();
    proxy.accept().unwrap();
    echo(&mut connect(&proxy), b"back").unwrap();
}

#[test]
fn a_cut_by_bytes_lets_exactly_so_many_through() {
    let proxy = proxy();
    let mut stream = connect(&proxy);
    echo(&mut stream, b"warm").unwrap();
    proxy.cut_after(3, Direction::ToClient);
    stream.write_all(b"hello").unwrap();
    await_until(Duration::from_secs(5), "the request", || {
        proxy.bytes(Direction::ToServer) == 9
    });
    assert!(is_reset(stream.read_exact(&mut [0; 5])));
    assert_eq!(proxy.bytes(Direction::ToClient), 4 + 3);
}

#[test]
fn the_server_sees_the_reset_too() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = Proxy::start(listener.local_addr().unwrap().port()).unwrap();
    let mut client = connect(&proxy);
    let (mut server, _) = listener.accept().unwrap();
    client.write_all(b"x").unwrap();
    server.read_exact(&mut [0]).unwrap();
    proxy.cut();
    assert!(is_reset(server.read_exact(&mut [0])));
}
