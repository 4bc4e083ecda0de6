package answers

import (
	"net/http"

	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// entry is what a code means, to programs and to people.
type entry struct {
	Code    wire.Code `json:"code"`
	Status  int       `json:"status"`
	Message string    `json:"message"` // for JSON and text, when the error brings none
	Fault   string    `json:"fault"`   // where the page draws the break: visitor, edge, device or local
	Title   string    `json:"title"`   // heading of the page: what happened
	Text    string    `json:"text"`    // the same in a sentence or two
	Next    string    `json:"next"`    // what to do now, where the page does not ask again by itself
	Refresh int       `json:"refresh"` // seconds until the page asks again; 0: it does not
}

// The places where the page draws the break.
const (
	faultVisitor = "visitor" // what was asked for: there is no way on
	faultEdge    = "edge"    // the service itself
	faultDevice  = "device"  // no connection to the device
	faultLocal   = "local"   // the connected device, or its service
)

const soon = "Please try again in a moment."

// table has one entry per code, in the order of wire.
var table = []entry{
	{
		Code: wire.UnknownDevice, Status: http.StatusNotFound, Fault: faultVisitor,
		Message: "no device has this address",
		Title:   "No device at this address",
		Text:    "The address may be mistyped, or it may be an old one: a device that stays away for long gets a new address.",
		Next:    "Please check the address, or ask for the device’s current link.",
	},
	{
		Code: wire.DeviceOffline, Status: http.StatusServiceUnavailable, Fault: faultDevice, Refresh: 15,
		Message: "the device is not connected",
		Title:   "This device is offline",
		Text:    "The address is right, but the device is not connected at the moment. It may be switched off, restarting or without a network.",
		Next:    "Please try again when the device is back.",
	},
	{
		Code: wire.DeviceRefused, Status: http.StatusBadGateway, Fault: faultLocal,
		Message: "the device is connected, but its service did not answer",
		Title:   "The device did not answer",
		Text:    "The device is connected, but the service behind this address is not. It may be starting, or switched off in the device’s settings.",
		Next:    soon,
	},
	{
		Code: wire.DeviceTimeout, Status: http.StatusGatewayTimeout, Fault: faultLocal, Refresh: 15,
		Message: "the device did not answer in time",
		Title:   "The device is taking too long",
		Text:    "The device is connected, but it did not answer in time. Its network may be slow, or it may have much to do.",
		Next:    soon,
	},
	{
		Code: wire.DeviceBusy, Status: http.StatusServiceUnavailable, Fault: faultLocal, Refresh: 10,
		Message: "the device serves as many connections as it can",
		Title:   "The device is busy",
		Text:    "The device is connected and serves as many visitors as it can at once. A place is usually free soon.",
		Next:    soon,
	},
	{
		Code: wire.Unauthorized, Status: http.StatusUnauthorized, Fault: faultVisitor,
		Message: "the credential is missing or not valid",
		Title:   "Not signed in",
		Text:    "The credential for this address is missing, or it is not valid any more.",
		Next:    "Please ask whoever runs this service for access.",
	},
	{
		Code: wire.Forbidden, Status: http.StatusForbidden, Fault: faultVisitor,
		Message: "this is not allowed",
		Title:   "Not allowed",
		Text:    "What you asked for is not open to you, or not any more.",
		Next:    "Please ask whoever runs this service for access.",
	},
	{
		Code: wire.DeviceConnected, Status: http.StatusConflict, Fault: faultVisitor,
		Message: "a device with this id is already connected",
		Title:   "Already connected",
		Text:    "A device with this id is connected and answering, so a second one is not let in.",
		Next:    "Every device needs an id of its own: please check whether one was copied.",
	},
	{
		Code: wire.BadRequest, Status: http.StatusBadRequest, Fault: faultVisitor,
		Message: "the request was not understood",
		Title:   "The request was not understood",
		Text:    "Something in the request is missing or malformed.",
		Next:    "Please check the address.",
	},
	{
		Code: wire.NotHere, Status: http.StatusMisdirectedRequest, Fault: faultEdge,
		Message: "this node does not hold the device",
		Title:   "Asked at the wrong place",
		Text:    "The device has just moved to another node of this service.",
		Next:    soon,
	},
	{
		Code: wire.UnknownStream, Status: http.StatusNotFound, Fault: faultVisitor,
		Message: "no stream waits under this id",
		Title:   "No such stream",
		Text:    "The stream has ended, was taken already, or never was.",
		Next:    "Agents open the next one when they are asked to.",
	},
	{
		Code: wire.UpgradeRequired, Status: http.StatusUpgradeRequired, Fault: faultVisitor,
		Message: "this address takes WebSocket connections of protocol version 1 over HTTP/1.1",
		Title:   "This address is for agents",
		Text:    "It takes WebSocket connections of protocol version 1, over HTTP/1.1. There is nothing to see in a browser.",
		Next:    "If this is an agent, please update it.",
	},
	{
		Code: wire.TooMany, Status: http.StatusTooManyRequests, Fault: faultVisitor,
		Message: "too many requests or connections",
		Title:   "Too many at once",
		Text:    "More requests or connections have come from your address than this service takes at once.",
		Next:    "Please close what you do not need, and try again in a moment.",
	},
	{
		Code: wire.Unavailable, Status: http.StatusServiceUnavailable, Fault: faultEdge, Refresh: 10,
		Message: "the service cannot do this at the moment",
		Title:   "Not available right now",
		Text:    "The service in front of the device cannot pass on your request at the moment. The device itself may well be fine.",
		Next:    soon,
	},
	{
		Code: wire.Redirected, Status: http.StatusFound, Fault: faultEdge,
		Message: "another node has more room",
		Title:   "Another node has more room",
		Text:    "Agents are asked to connect to the node that this answer names.",
		Next:    "There is nothing to do in a browser.",
	},
}

var byCode = func() map[wire.Code]*entry {
	m := make(map[wire.Code]*entry, len(table))
	for i := range table {
		m[table[i].Code] = &table[i]
	}
	return m
}()

// entryOf never returns nil: a code without an entry is a mistake of ours, and
// says so with a 500.
func entryOf(code wire.Code) *entry {
	if e := byCode[code]; e != nil {
		return e
	}
	return &entry{
		Code: code, Status: http.StatusInternalServerError, Fault: faultEdge,
		Message: "internal error",
		Title:   "Something went wrong",
		Text:    "The service in front of the device has made a mistake.",
		Next:    soon,
	}
}
