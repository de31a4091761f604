//! compio: a task for each connection on its io_uring driver. TCP alone.

use std::net::SocketAddr;

use anyhow::Result;
use compio::BufResult;
use compio::io::{AsyncRead, AsyncWriteExt};
use compio::net::{TcpListener, TcpStream};
use compio::runtime::{Runtime, spawn};

use super::BUFFER_BYTES;

pub(super) fn serve(address: SocketAddr) -> Result<()> {
    Runtime::new()?.block_on(async move {
        let listener = TcpListener::bind(address).await?;
        loop {
            let (stream, _) = listener.accept().await?;
            spawn(connection(stream)).detach();
        }
    })
}

async fn connection(mut stream: TcpStream) -> std::io::Result<()> {
    let mut buffer = Vec::with_capacity(BUFFER_BYTES);
    loop {
        let BufResult(result, filled) = stream.read(buffer).await;
        if result? == 0 {
            return Ok(());
        }
        let BufResult(result, written) = stream.write_all(filled).await;
        result?;
        buffer = written;
        buffer.clear();
    }
}
