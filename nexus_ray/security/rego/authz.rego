# Who may do what, over `data.nexus.policy`, which `security/policy.py` compiles out of the role file.
#
# Law: deny by default; `reason` is one of fixed codes, of which "granted" alone is a yes, and holds nothing of the input.
# `held` says who has a role and where, `grants` what a role may do; `input.candidates` points at those that may apply,
# because to look for them here costs 1 µs for each that there is, and every loop 50. A pointer is not believed: what it
# points at is checked whole, so a wrong one can only leave something out.
# OPA 1.x and the embedded interpreter take this same file, so it asks for no built-in but `startswith`, and it has no
# functions of its own and no sets, which cost the embedded one 0.4 ms each.
package nexus.authz

import rego.v1

default allow := false

allow if reason == "granted"

reason := "tenant_unknown" if not is_tenant_known

# By a role that may do this to everything, from everywhere and at any time.
else := "granted" if {
	some candidate in input.candidates
	grant := data.nexus.policy.grants[candidate.grant]
	grant.is_free == true
	grant.action == input.action
	held := data.nexus.policy.held[candidate.held]
	held.role == grant.role
	some holder in input.holders
	startswith(holder, held.holder)
	tenant := input.tenants[candidate.tenant]
	held.tenants[tenant] == true
}

# By a role with limits.
else := "granted" if {
	some candidate in input.candidates
	grant := data.nexus.policy.grants[candidate.grant]
	grant.action == input.action
	held := data.nexus.policy.held[candidate.held]
	held.role == grant.role
	some holder in input.holders
	startswith(holder, held.holder)
	tenant := input.tenants[candidate.tenant]
	held.tenants[tenant] == true
	startswith(input.resource[candidate.form], grant.resources[candidate.pattern])
	some network in grant.sources
	startswith(input.source, network)
	some span in grant.times
	span.weekdays[input.weekday] == true
	span.begin <= input.minute
	input.minute < span.end
}

else := "no_role_grants_it"

is_tenant_known if {
	some tenant in input.tenants
	data.nexus.policy.tenants[tenant] == true
}

revision := data.nexus.policy.revision
