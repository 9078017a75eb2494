//! The console over a real socket, before the broker is open.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

async fn console(config: ConsoleConfig) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve(
        listener,
        Node::starting(),
        config,
        std::future::pending(),
    ));
    address
}

async fn get(address: std::net::SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn it_answers_while_the_node_recovers() {
    let address = console(ConsoleConfig::default()).await;
    assert!(get(address, "/healthz").await.starts_with("HTTP/1.1 200"));
    let readyz = get(address, "/readyz").await;
    assert!(
        readyz.starts_with("HTTP/1.1 503") && readyz.ends_with("recovering\n"),
        "{readyz}"
    );
    let metrics = get(address, "/metrics").await;
    assert!(
        metrics.contains("openmetrics-text") && metrics.contains("flumen_ready 0.0"),
        "{metrics}"
    );
    assert!(
        get(address, "/version")
            .await
            .contains("\"name\":\"flumen\"")
    );
    assert!(get(address, "/secrets").await.starts_with("HTTP/1.1 404"));
}

#[tokio::test]
async fn a_client_that_says_nothing_is_dropped_and_frees_its_place() {
    let config = ConsoleConfig {
        connections_max: 1,
        header_timeout_ms: 50,
        ..ConsoleConfig::default()
    };
    let address = console(config).await;
    let mut silent = TcpStream::connect(address).await.unwrap();
    assert!(get(address, "/healthz").await.starts_with("HTTP/1.1 200"));
    let mut rest = Vec::new();
    silent.read_to_end(&mut rest).await.unwrap();
}
