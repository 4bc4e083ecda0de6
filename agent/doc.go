// Package agent makes the ports of a device reachable through an iottunnel edge.
//
// An Agent keeps one outbound WebSocket, its tunnel, to an edge. For each visitor
// the edge asks for a stream to one of the forwarded ports; the agent connects to
// the port's target and joins the two. Nothing but the configured targets can be
// reached, whatever the edge asks for.
//
// A target is an address, a function, or, with Listen, a net.Listener in this
// very program, so that an http.Handler is served to the world without a port
// being open on the device.
//
// Besides, Enroll gets a device its secret for a claim code, and Connect reaches a
// port of another device, as a technician does.
package agent
