package agent

import "github.com/iottunnel/iottunnel/tunnelcore/wire"

// offered are the capabilities of a profile (protocol §3.5).
func offered(p Profile) wire.Caps {
	switch p {
	case ProfileFull:
		return wire.Redirect | wire.Early | wire.Reuse
	case ProfileInline:
		return wire.Redirect | wire.Early | wire.Inline
	}
	return wire.Redirect
}

// inForce are the capabilities that count of those that were offered and echoed.
func inForce(offered, echoed wire.Caps) wire.Caps {
	caps := offered & echoed
	if !caps.Has(wire.Early) {
		caps &^= wire.Reuse | wire.Inline
	}
	return caps
}
