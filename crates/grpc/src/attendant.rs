//! The services that every gRPC server has beside its own: health and reflection.

use flumen_api::FILE_DESCRIPTOR_SET;
use flumen_api::v1::{admin_server, consumer_server, delivery_server, producer_server};
use http::{Request, Response};
use hyper::body::Incoming;
use tonic::body::Body;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tonic_reflection::server::Error;
use tower_service::Service as _;

/// Paths that health and reflection answer.
const SERVICES: [&str; 3] = [
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    // Asked for by tools from before 2023.
    "grpc.reflection.v1alpha.ServerReflection",
];

/// Services that have a health of their own; the empty name is the whole server.
const HEALTHY: [&str; 5] = [
    "",
    admin_server::SERVICE_NAME,
    producer_server::SERVICE_NAME,
    consumer_server::SERVICE_NAME,
    delivery_server::SERVICE_NAME,
];

/// Health and reflection. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Attendants {
    routes: Routes,
    health: HealthReporter,
}

impl Attendants {
    /// Of a server that serves.
    pub(crate) async fn new() -> Result<Self, Error> {
        let (health, health_service) = tonic_health::server::health_reporter();
        let descriptors = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let routes = Routes::new(health_service)
            .add_service(descriptors().build_v1()?)
            .add_service(descriptors().build_v1alpha()?)
            .prepare();
        let attendants = Self { routes, health };
        attendants.say(ServingStatus::Serving).await;
        Ok(attendants)
    }

    /// Tells everyone who asks, or watches, that this server takes no new work.
    pub(crate) async fn say_draining(&self) {
        self.say(ServingStatus::NotServing).await;
    }

    async fn say(&self, status: ServingStatus) {
        for service in HEALTHY {
            self.health.set_service_status(service, status).await;
        }
    }

    /// Whether health or reflection answers for this service.
    pub(crate) fn answers(service: &str) -> bool {
        SERVICES.contains(&service)
    }

    /// Answers a request for one of them.
    pub(crate) async fn answer(&mut self, request: Request<Incoming>) -> Response<Body> {
        // The router is always ready.
        match self.routes.call(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }
}
