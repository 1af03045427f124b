# Who may do what, over `data.nexus.policy`, which `security/policy.py` compiles out of the role file.
#
# Law: deny by default; `reason` is one of fixed codes and holds nothing of the input. OPA 1.x and the embedded
# interpreter take this same file, so it asks for no built-in but `startswith`, and it has no functions of its own and
# no sets, which cost the embedded one 0.4 ms each.
package nexus.authz

import rego.v1

default allow := false

# By a role that the token names.
allow if {
	some tenant in ["*", input.tenant]
	data.nexus.policy.tenants[tenant] == true
	some role in input.roles
	some rule in data.nexus.policy.rules[role][input.action]
	some resource in input.resource
	some pattern in rule.resources
	startswith(resource, pattern)
	some where in ["*", input.tenant]
	rule.tenants[where] == true
	some network in rule.sources
	startswith(input.source, network)
	some span in rule.times
	span.weekdays[input.weekday] == true
	span.begin <= input.minute
	input.minute < span.end
}

# By a role that a binding gives to its principal or to one of its groups.
allow if {
	some tenant in ["*", input.tenant]
	data.nexus.policy.tenants[tenant] == true
	some binding in data.nexus.policy.bindings
	some holder in input.holders
	some wanted in binding.holders
	startswith(holder, wanted)
	some here in ["*", input.tenant]
	binding.tenants[here] == true
	some rule in data.nexus.policy.rules[binding.role][input.action]
	some resource in input.resource
	some pattern in rule.resources
	startswith(resource, pattern)
	some where in ["*", input.tenant]
	rule.tenants[where] == true
	some network in rule.sources
	startswith(input.source, network)
	some span in rule.times
	span.weekdays[input.weekday] == true
	span.begin <= input.minute
	input.minute < span.end
}

is_tenant_known if {
	some tenant in ["*", input.tenant]
	data.nexus.policy.tenants[tenant] == true
}

reason := "granted" if allow

reason := "no_role_grants_it" if {
	not allow
	is_tenant_known
}

reason := "tenant_unknown" if {
	not allow
	not is_tenant_known
}

revision := data.nexus.policy.revision
