//! Joining over TLS: who gets a certificate, and what one allows.

use std::sync::Arc;

use http::StatusCode;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use serde_json::json;
use tokio::net::TcpListener;
use tonic::Code;
use tonic::transport::Channel;

use runtime::rpc::Dialer;
use runtime::tls::{CONTROL_PLANE_NAME, Identity};
use shared::ids::NodeId;
use shared::proto::{self, control_message::Message as Control};

use super::super::listener;
use super::{Hand, NODE, call, hello, routes};
use crate::testing::House;

fn csr() -> (Vec<u8>, rcgen::KeyPair) {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("a key");
    let mut params = rcgen::CertificateParams::default();
    // What it asks for is ignored.
    params.subject_alt_names = vec![rcgen::SanType::URI("spiffe://x/node/node_0".try_into().expect("ASCII"))];
    (params.serialize_request(&key).expect("a request").der().to_vec(), key)
}

async fn dial(
    address: std::net::SocketAddr,
    identity: Option<Identity>,
    ca: &CertificateDer<'static>,
) -> Result<Channel, tonic::transport::Error> {
    let config = Arc::new(runtime::tls::client(identity, ca.clone()).expect("good settings"));
    let name = ServerName::try_from(CONTROL_PLANE_NAME).expect("a name");
    Dialer::tls(&address.to_string(), name, move || config.clone()).connect().await
}

#[tokio::test]
async fn joining_and_who_may_do_what_over_tls() {
    let house = House::sqlite().await;
    // Certificates are checked against the machine's clock.
    let app = house.app.clone().with_clock(runtime::clock::now_ms);
    super::super::start(&app).await.expect("publishing starts");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    runtime::task::spawn("tls", listener::serve_tls(app.clone(), routes(&app), listener, vec!["cp.example".into()]));
    let ca = app.publish.authority().expect("started").certificate().clone();

    let other = House::sqlite().await;
    super::super::start(&other.app.clone().with_clock(runtime::clock::now_ms)).await.expect("publishing starts");
    let stranger = other.app.publish.authority().expect("started").certificate().clone();
    assert!(dial(address, None, &stranger).await.is_err(), "a node does not talk to another authority's server");

    let bare = dial(address, None, &ca).await.expect("joining needs no certificate");
    let refused = Hand::open(&bare, hello(NODE)).await.map(|_| ()).expect_err("no certificate");
    assert_eq!(refused.code(), Code::Unauthenticated);
    let renew = proto::RenewRequest { csr_der: csr().0 };
    let refused =
        call::<_, proto::Certificate>(&bare, "/pointsman.v1.Enrolment/Renew", renew).await.expect_err("no certificate");
    assert_eq!(refused.code(), Code::Unauthenticated);

    let body = json!({"labels": {"region": "eu"}, "expires_in_seconds": 60});
    let mut tx = app.db.begin().await.expect("a transaction");
    let authority = app.publish.authority().expect("started");
    let labels = [("region".to_owned(), "eu".to_owned())].into();
    let token = authority.make_token(&app, &mut tx, &labels, 60_000).await.expect("a token").text;
    let expired = authority.make_token(&app, &mut tx, &labels, -1).await.expect("a token").text;
    tx.commit().await.expect("it commits");
    let over_rest = house.call("POST", "/api/v1/nodes/tokens", Some(body)).await;
    assert_eq!(over_rest.status, StatusCode::CREATED, "{}", over_rest.text);
    assert_eq!(over_rest.at("/token").split('.').nth(1).map(str::len), Some(64));

    let (csr_der, key) = csr();
    let join = |token: &str, csr_der: &[u8]| proto::JoinRequest {
        token: token.into(),
        csr_der: csr_der.to_vec(),
        display_name: "one".into(),
    };
    const JOIN: &str = "/pointsman.v1.Enrolment/Join";
    let damaged = call::<_, proto::Certificate>(&bare, JOIN, join(&token, &csr_der[1..])).await.expect_err("damaged");
    assert_eq!(damaged.code(), Code::InvalidArgument);
    let certificate: proto::Certificate = call(&bare, JOIN, join(&token, &csr_der)).await.expect("the node joins");
    for bad in [token.as_str(), expired.as_str(), "pmj_x", ""] {
        let refused = call::<_, proto::Certificate>(&bare, JOIN, join(bad, &csr_der)).await.expect_err("not valid");
        assert_eq!((refused.code(), refused.message()), (Code::PermissionDenied, "the join token is not valid"));
    }
    assert_eq!(certificate.ca_der, ca.to_vec());

    let identity = |certificate: &proto::Certificate, key: &rcgen::KeyPair| Identity {
        chain: vec![CertificateDer::from(certificate.certificate_der.clone())],
        key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
    };
    let foreign = other.app.publish.authority().expect("started").issue(NODE, &csr_der, app.now_ms()).expect("issued");
    let intruder = dial(address, Some(identity(&foreign, &key)), &ca).await;
    let refused = match intruder {
        // TLS 1.3 clients hear of a refused certificate only with the first answer.
        Ok(channel) => Hand::open(&channel, hello(NODE)).await.map(|_| ()).is_err(),
        Err(_) => true,
    };
    assert!(refused, "another authority's certificate is no certificate");

    let channel = dial(address, Some(identity(&certificate, &key)), &ca).await.expect("the node connects");
    let id: NodeId = certificate.node_id.parse().expect("a node id");
    let mut liar = Hand::open(&channel, hello(NODE)).await.expect("the stream opens");
    assert_eq!(liar.next().await.expect_err("another's id").code(), Code::InvalidArgument);
    let mut node = Hand::open(&channel, hello(id)).await.expect("the stream opens");
    assert!(matches!(node.next().await, Ok(Control::Welcome(_))));
    assert_eq!(node.follow().await.scope, "shared");
    assert_eq!(node.id, id);

    let mut again = Hand::open(&channel, proto::Hello { boot_id: vec![2; 16], ..hello(id) }).await.expect("it opens");
    assert!(matches!(again.next().await, Ok(Control::Welcome(_))));
    let ended = loop {
        match node.next().await {
            Ok(_) => {}
            Err(ended) => break ended,
        }
    };
    assert_eq!(ended.code(), Code::Aborted, "the newer process wins");

    let renewed: proto::Certificate =
        call(&channel, "/pointsman.v1.Enrolment/Renew", proto::RenewRequest { csr_der: csr().0 })
            .await
            .expect("it renews");
    assert_eq!(renewed.node_id, certificate.node_id);
    let shown = house.call("GET", &format!("/api/v1/nodes/{id}"), None).await;
    assert_eq!((shown.at("/labels/region"), shown.at("/display_name")), ("eu".into(), "by hand".into()));
    house.call("DELETE", &format!("/api/v1/nodes/{id}"), None).await;
    let refused = call::<_, proto::Certificate>(
        &channel,
        "/pointsman.v1.Enrolment/Renew",
        proto::RenewRequest { csr_der: csr().0 },
    )
    .await
    .expect_err("it is revoked");
    assert_eq!(refused.code(), Code::PermissionDenied);
    other.close().await;
    house.close().await;
}
