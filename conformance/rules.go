package conformance

import "strings"

// Rule is a rule of docs/protocol.md.
type Rule struct {
	Number string
	Title  string
	// Unseen says why the tool does not try it; empty where a case does.
	Unseen string
}

// under reports whether the rule has that number, or is of the section.
func (r Rule) under(number string) bool {
	return r.Number == number || strings.HasPrefix(r.Number, number+".")
}

// Rules are all of docs/protocol.md, in its order.
var Rules = []Rule{
	{"1.1", "Device id", ""},
	{"1.2", "One tunnel", "binds the edge, which ends one of two"},
	{"1.3", "Form of ids", "says what an id is; 3.2 and 6.3 try those that an agent sends"},
	{"1.4", "Targets", ""},
	{"1.5", "Basic profile", "says what a profile is; 3.5 tries that an agent works in it"},
	{"2.1", "Paths", ""},
	{"2.2", "Transport", ""},
	{"2.3", "Subprotocol", ""},
	{"2.4", "Credentials", ""},
	{"2.5", "Answers", ""},
	{"2.6", "Browsers", ""},
	{"2.7", "Plain connections", ""},
	{"2.8", "Redirects", ""},
	{"2.9", "Versions", "binds the edge"},
	{"2.10", "After 101", ""},
	{"3.1", "Parameters", ""},
	{"3.2", "Instance", ""},
	{"3.3", "Ports", ""},
	{"3.4", "Bounds", ""},
	{"3.5", "Capabilities", ""},
	{"3.6", "Asking only", ""},
	{"4.1", "ready", ""},
	{"4.2", "port", ""},
	{"4.3", "Form of messages", ""},
	{"4.4", "What is unknown", ""},
	{"4.5", "What is malformed", ""},
	{"4.6", "All messages", ""},
	{"5.1", "Heartbeat", ""},
	{"5.2", "Watchdog", ""},
	{"5.3", "Goodbye", ""},
	{"5.4", "drain", ""},
	{"5.5", "Close codes", ""},
	{"5.6", "Coming back", ""},
	{"5.7", "Several edges", ""},
	{"6.1", "open", ""},
	{"6.2", "The id", ""},
	{"6.3", "Transfer socket", ""},
	{"6.4", "refused", ""},
	{"6.5", "Bytes", ""},
	{"6.6", "Closing", ""},
	{"6.7", "Abort", ""},
	{"6.8", "Silence", ""},
	{"6.9", "Violations", ""},
	{"7.1", "Codes", ""},
	{"8.1", "Limits", ""},
	{"8.2", "Size of a handshake", ""},
	{"9.1", "Form of frames", ""},
	{"9.2", "Kinds of frames", ""},
	{"9.3", "Unknown frames", ""},
	{"9.4", "Order", ""},
	{"10.1", "Bounds of early", ""},
	{"10.2", "Credit", ""},
	{"10.3", "Directions", ""},
	{"10.4", "Getting a transfer socket", ""},
	{"10.5", "Moving", ""},
	{"10.6", "Aborting", ""},
	{"10.7", "Refusing", ""},
	{"10.8", "Spent credit", ""},
	{"10.9", "Violations", ""},
	{"10.10", "The end of the control socket", ""},
	{"11.1", "Parking", ""},
	{"11.2", "attach", ""},
	{"11.3", "attached", ""},
	{"11.4", "No answer", ""},
	{"11.5", "Violations", ""},
	{"12.1", "Window", ""},
	{"12.2", "credit", ""},
	{"12.3", "Violations", ""},
	{"14.1", "Claim codes", "enrolment is no part of a tunnel, and agents need not know it"},
	{"14.2", "Asking for a secret", "as 14.1"},
	{"14.3", "The secret", "as 14.1"},
	{"14.4", "Other answers", "as 14.1"},
	{"14.5", "What a code is for", "binds the edge"},
	{"15.1", "Grants", "`connect` is for technicians, and agents need not know it"},
	{"15.2", "Asking for a port", "as 15.1"},
	{"15.3", "The answers", "as 15.1"},
	{"15.4", "The stream", "as 15.1"},
}
