//! A new topology, with the plan that makes it.

use std::collections::BTreeSet;

use super::{CreateRequest, DeskError, Draft, Preview, new_plan, refuse_unless_agreed};
use crate::clock;
use crate::domain::id::{PlanId, TopologyId};
use crate::domain::intent::{CreateIntent, Intent, create};
use crate::domain::node::Address;
use crate::domain::plan::Plan;
use crate::domain::refusal::{FieldError, Refusal};
use crate::domain::spec::Mode;
use crate::domain::topology::Topology;
use crate::engine::Engine;
use crate::store::StoreError;
use crate::store::nodes::NewNode;
use crate::store::topologies::NewTopology;

impl Engine {
    /// What creating a topology would do; nothing is stored, no node is changed.
    pub async fn preview_create(&self, request: &CreateRequest) -> Result<Preview, DeskError> {
        Ok(self.draft(request).await?.preview)
    }

    /// Stores a new topology with the plan that creates it.
    pub async fn create(&self, request: &CreateRequest, actor: &str) -> Result<Plan, DeskError> {
        let draft = self.draft(request).await?;
        refuse_unless_agreed(&request.options, &draft.preview)?;
        let id = PlanId(clock::new_id());
        let accepted = request.options.accepted();
        let plan = new_plan(id, &draft, &accepted, &request.options, actor);
        let wanted = &draft.wanted;
        self.store
            .create_topology(&NewTopology {
                wanted,
                labels: &request.labels,
                nodes: &NewNode::of_spec(&wanted.spec),
                plan: &plan,
                actor,
            })
            .await?;
        self.ring(wanted.id);
        self.stored_plan(id).await
    }

    async fn draft(&self, request: &CreateRequest) -> Result<Draft, DeskError> {
        let wrong = request.spec.validate();
        if !wrong.is_empty() {
            let wrong = wrong.into_iter().map(|e| e.under("/spec")).collect();
            return Err(Refusal::Invalid(wrong).into());
        }
        self.refuse_name(&request.name).await?;
        let logins = self.logins(&request.spec).await?;
        let nodes = request.spec.nodes().iter().enumerate();
        let fields: Vec<_> =
            nodes.map(|(i, n)| (n.address.clone(), format!("/spec/nodes/{i}/address"))).collect();
        self.refuse_taken(&fields, None).await?;
        let mut seen = self.look(&request.spec, &BTreeSet::new(), &logins, None).await;
        if request.spec.mode() == Mode::Cluster {
            self.knock_at_buses(&mut seen).await;
        }
        let id = TopologyId(clock::new_id());
        let amendment = create::amend(id, &request.spec, request.reset_nodes, &seen)?;
        let wanted = Topology {
            id,
            name: request.name.clone(),
            version: 1,
            spec: request.spec.clone(),
            layout: amendment.layout.clone(),
        };
        let intent = Intent::Create(CreateIntent { reset_nodes: request.reset_nodes });
        let preview = self.forecast(&wanted, &seen, intent, 0, amendment, &request.options)?;
        // Its first version is stored with it.
        Ok(Draft { wanted, reshapes: false, preview, displaces: None })
    }

    /// Told before anything about nodes, which would be those of the topology itself.
    pub(super) async fn refuse_name(&self, name: &str) -> Result<(), DeskError> {
        match self.store.topology(name).await {
            Ok(_) => Err(Refusal::NameTaken(name.to_owned()).into()),
            Err(StoreError::Refused(Refusal::NotFound { .. })) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Nodes, each with the field that names it, that belong to another topology than `own`.
    pub(super) async fn refuse_taken(
        &self,
        nodes: &[(Address, String)],
        own: Option<&str>,
    ) -> Result<(), DeskError> {
        let addresses: Vec<Address> = nodes.iter().map(|(a, _)| a.clone()).collect();
        let taken = self.store.nodes_taken(&addresses).await?;
        let errors: Vec<FieldError> = taken
            .into_iter()
            .filter(|(_, topology)| own != Some(topology.as_str()))
            .filter_map(|(address, topology)| {
                let (_, field) = nodes.iter().find(|(a, _)| *a == address)?;
                let why = format!(
                    "{address} belongs to the topology `{topology}`; name a node that is free"
                );
                Some(FieldError::new(field.clone(), why))
            })
            .collect();
        if errors.is_empty() { Ok(()) } else { Err(Refusal::NodeTaken(errors).into()) }
    }
}
