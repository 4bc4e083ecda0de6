package wire

// Code names an error in the JSON body of an answer, in the header
// Iottunnel-Error, in logs and in metrics: one word for one cause.
type Code string

// The codes (protocol §7.1). Their HTTP statuses are in package answers.
const (
	UnknownDevice   Code = "unknown_device"
	DeviceOffline   Code = "device_offline"
	DeviceRefused   Code = "device_refused"
	DeviceTimeout   Code = "device_timeout"
	DeviceBusy      Code = "device_busy"
	Unauthorized    Code = "unauthorized"
	Forbidden       Code = "forbidden"
	DeviceConnected Code = "device_connected"
	BadRequest      Code = "bad_request"
	NotHere         Code = "not_here"
	UnknownStream   Code = "unknown_stream"
	UpgradeRequired Code = "upgrade_required"
	TooMany         Code = "too_many"
	Unavailable     Code = "unavailable"
	Redirected      Code = "redirect"
)

// ErrorBody is the JSON body of every answer that is an error.
type ErrorBody struct {
	Error   Code   `json:"error"`
	Message string `json:"message"`
}

// Close codes of sockets (RFC 6455 §7.4, protocol §5.5).
const (
	CloseNormal     = 1000
	CloseGoingAway  = 1001
	CloseProtocol   = 1002 // RFC 6455 framing broken
	CloseTooBig     = 1009
	CloseRestart    = 1012
	CloseReplaced   = 4001
	CloseRevoked    = 4003
	CloseMalformed  = 4100
	CloseOverloaded = 4101
	CloseExpired    = 4102
)

// Retry is how an agent goes on after its control socket has ended or its
// handshake was refused.
type Retry int

const (
	// RetrySoon is the usual way: the first attempt within half a second, then
	// backoff with jitter.
	RetrySoon Retry = iota
	// RetryBackoff starts with the full backoff: the edge was not content.
	RetryBackoff
	// RetrySlow waits 5 to 15 minutes each time: only a person can help. An
	// agent never stops for good.
	RetrySlow
)

// RetryAfterClose is the rule of protocol §5.5.
func RetryAfterClose(code int) Retry {
	switch {
	case code >= 4000 && code < 4100:
		return RetrySlow
	case code >= 4100 && code < 4200:
		return RetryBackoff
	}
	return RetrySoon
}

// RetryAfterStatus is the same for a handshake that was answered with an HTTP
// status other than 101.
func RetryAfterStatus(status int) Retry {
	switch status {
	case 401, 403:
		return RetrySlow
	}
	return RetryBackoff
}
