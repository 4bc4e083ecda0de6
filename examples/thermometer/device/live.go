package device

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"sync"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/socket"
	"github.com/iottunnel/iottunnel/tunnelcore/socket/accept"
)

// readingJSON is a reading on its own, for programs and for the page.
type readingJSON struct {
	TimeMS  int64   `json:"time_ms"`
	Celsius float64 `json:"celsius"`
	Text    string  `json:"text"` // in the unit of the settings
	Door    bool    `json:"door_open"`
	Alarm   bool    `json:"alarm"`
	Name    string  `json:"name"`
}

func (d *Device) readingJSON(r Reading, s Settings) readingJSON {
	return readingJSON{
		TimeMS: r.Time.UnixMilli(), Celsius: r.Celsius, Text: s.Unit.format(r.Celsius, 2),
		Door: r.Door, Alarm: r.Celsius > s.Alarm, Name: s.Name,
	}
}

type settingsJSON struct {
	Name  string  `json:"name"`
	Unit  Unit    `json:"unit"`
	Alarm float64 `json:"alarm_celsius"`
}

func (s Settings) json() settingsJSON { return settingsJSON(s) }

// snapshotJSON holds the history in columns: a third of the bytes of rows.
type snapshotJSON struct {
	Settings   settingsJSON `json:"settings"`
	IntervalMS int64        `json:"interval_ms"`
	StartedMS  int64        `json:"started_ms"`
	Firmware   *Firmware    `json:"firmware"`
	TimeMS     []int64      `json:"time_ms"`
	Celsius    []float64    `json:"celsius"`
	Door       []bool       `json:"door_open"`
}

func (d *Device) snapshotJSON(s snapshot) snapshotJSON {
	j := snapshotJSON{
		Settings: s.settings.json(), Firmware: s.firmware,
		IntervalMS: d.interval.Milliseconds(), StartedMS: d.started.UnixMilli(),
	}
	for _, r := range s.history {
		j.TimeMS = append(j.TimeMS, r.Time.UnixMilli())
		j.Celsius = append(j.Celsius, r.Celsius)
		j.Door = append(j.Door, r.Door)
	}
	return j
}

// named is a change as the name and the body of its event.
func (d *Device) named(c change, s *Settings) (name string, body any) {
	switch {
	case c.settings != nil:
		*s = *c.settings
		return "settings", s.json()
	case c.firmware != nil:
		return "firmware", c.firmware
	}
	return "reading", d.readingJSON(*c.reading, *s)
}

// eventWrite bounds the time in which a visitor must take an event.
const eventWrite = 10 * time.Second

// serveEvents streams server-sent events: one `snapshot`, then `reading`,
// `settings` and `firmware` as they come. A visitor that lags behind is dropped;
// EventSource comes back by itself.
func (d *Device) serveEvents(w http.ResponseWriter, r *http.Request) {
	now, changes, leave, ok := d.subscribe()
	if !ok {
		w.Header().Set("Retry-After", "5")
		http.Error(w, "too many visitors", http.StatusServiceUnavailable)
		return
	}
	defer leave()
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no") // nginx would hold events back
	if r.Method == http.MethodHead {
		return
	}
	rc := http.NewResponseController(w)
	send := func(name string, body any) error {
		data, err := json.Marshal(body)
		if err != nil {
			return err
		}
		// A connection without deadlines goes without.
		_ = rc.SetWriteDeadline(time.Now().Add(eventWrite))
		var b bytes.Buffer
		fmt.Fprintf(&b, "event: %s\ndata: %s\n\n", name, data)
		if _, err := w.Write(b.Bytes()); err != nil {
			return err
		}
		return rc.Flush()
	}
	if _, err := w.Write([]byte("retry: 1000\n\n")); err != nil {
		return
	}
	if err := send("snapshot", d.snapshotJSON(now)); err != nil {
		return
	}
	for {
		select {
		case c, more := <-changes:
			if !more {
				return
			}
			if err := send(d.named(c, &now.settings)); err != nil {
				return
			}
		case <-r.Context().Done():
			return
		case <-d.done:
			return
		}
	}
}

// Bounds of a WebSocket.
const (
	socketMessage = 4 << 10
	socketSilence = 75 * time.Second // no frame for that long: the visitor is gone
	socketPing    = 25 * time.Second
	// subprotocol is offered, and not insisted on.
	subprotocol = "thermometer"
)

// command is a message from a WebSocket; one of the fields is set.
type command struct {
	Ping  *float64        `json:"ping"`  // answered with pong and the same number
	Read  bool            `json:"read"`  // answered with a reading
	Watch *bool           `json:"watch"` // readings as they come, from now on, or no more
	Set   string          `json:"set"`   // name, unit or alarm (Celsius)
	Value json.RawMessage `json:"value"` // for set
}

// serveSocket takes commands, and answers each with one message. With watch it
// sends readings in between.
func (d *Device) serveSocket(w http.ResponseWriter, r *http.Request) {
	if origin := r.Header.Get("Origin"); origin != "" {
		// Browsers open WebSockets for any site that asks.
		if u, err := url.Parse(origin); err != nil || u.Host != r.Host {
			http.Error(w, "not from this page", http.StatusForbidden)
			return
		}
	}
	now, changes, leave, ok := d.subscribe()
	if !ok {
		w.Header().Set("Retry-After", "5")
		http.Error(w, "too many visitors", http.StatusServiceUnavailable)
		return
	}
	defer leave()
	s, err := accept.Upgrade(w, r, subprotocol, socket.SmallBuffer, nil)
	if refused := new(socket.StatusError); errors.As(err, &refused) {
		if refused.Status == http.StatusBadRequest || refused.Status == http.StatusUpgradeRequired {
			w.Header().Set("Upgrade", "websocket")
			refused.Status = http.StatusUpgradeRequired
		}
		http.Error(w, "this address takes WebSockets", refused.Status)
		return
	} else if err != nil {
		return
	}
	s.SetWriteTimeout(eventWrite)
	c := &client{d: d, s: s, left: make(chan struct{})}
	var watcher sync.WaitGroup
	watcher.Go(func() { c.watch(now.settings, changes) })
	code := c.read()
	// The close frame is a courtesy: the peer may be gone.
	_ = s.WriteClose(code, "", time.Second)
	close(c.left)
	watcher.Wait() // it closes the connection
}

// client is one WebSocket. Its reader answers; its watcher sends what comes
// unasked.
type client struct {
	d    *Device
	s    *socket.Socket
	left chan struct{} // closed by the reader

	mu      sync.Mutex
	watches bool
}

// read handles commands until the visitor leaves; it returns the code to close
// with.
func (c *client) read() int {
	for {
		op, b, err := c.next()
		closed := new(socket.CloseError)
		switch {
		case errors.Is(err, socket.ErrTooBig):
			return 1009
		case errors.As(err, &closed):
			return 1000
		case err != nil:
			return 1001
		case op != socket.Text:
			return 1003
		}
		if err := c.send(c.answer(b)); err != nil {
			return 1001
		}
	}
}

// next is the next message. Pongs are no messages, but they count as a sign of
// life.
func (c *client) next() (op socket.Opcode, b []byte, err error) {
	for {
		heard := c.s.Heard()
		if err := c.s.SetReadDeadline(time.Now().Add(socketSilence)); err != nil {
			return 0, nil, err
		}
		op, b, err = c.s.ReadMessage(socketMessage)
		if errors.Is(err, os.ErrDeadlineExceeded) && c.s.Heard() != heard {
			continue
		}
		return op, b, err
	}
}

// answer obeys one command.
func (c *client) answer(message []byte) any {
	type problem struct {
		Error string `json:"error"`
	}
	var cmd command
	if err := json.Unmarshal(message, &cmd); err != nil {
		return problem{"a command is a JSON object, such as {\"read\":true}"}
	}
	switch {
	case cmd.Ping != nil:
		return map[string]any{"pong": *cmd.Ping}
	case cmd.Read:
		return map[string]any{"reading": c.d.readingJSON(c.d.Reading(), c.d.Settings())}
	case cmd.Watch != nil:
		c.mu.Lock()
		c.watches = *cmd.Watch
		c.mu.Unlock()
		return map[string]any{"watch": *cmd.Watch}
	case cmd.Set != "":
		s, reason := c.d.setOne(cmd.Set, cmd.Value)
		if reason != "" {
			return problem{reason}
		}
		return map[string]any{"settings": s.json()}
	}
	return problem{"commands: ping, read, watch, set"}
}

// setOne changes one setting; reason says why not.
func (d *Device) setOne(field string, value json.RawMessage) (s Settings, reason string) {
	s = d.Settings()
	name, unit, alarm := s.Name, string(s.Unit), fmt.Sprint(s.Unit.From(s.Alarm))
	var err error
	switch field {
	case "name":
		err = json.Unmarshal(value, &name)
	case "unit":
		err = json.Unmarshal(value, &unit)
		alarm = fmt.Sprint(Unit(unit).From(s.Alarm))
	case "alarm":
		var celsius float64
		err = json.Unmarshal(value, &celsius)
		alarm = fmt.Sprint(s.Unit.From(celsius))
	default:
		return s, "settings: name, unit, alarm"
	}
	if err != nil {
		return s, "the value does not fit"
	}
	parsed, problems := ParseSettings(name, unit, alarm)
	if problems != nil {
		return s, problems[field]
	}
	d.update(func(s *Settings) {
		switch field {
		case "name":
			s.Name = parsed.Name
		case "unit":
			s.Unit = parsed.Unit
		case "alarm":
			s.Alarm = parsed.Alarm
		}
		parsed = *s
	})
	return parsed, ""
}

func (c *client) send(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return c.s.WriteMessage(socket.Text, b)
}

// watch sends readings to those who watch, settings and firmware with them, and
// pings. When the device stops, or the visitor lags behind, it closes the socket,
// and so ends the reader.
func (c *client) watch(s Settings, changes <-chan change) {
	ping := time.NewTicker(socketPing)
	defer ping.Stop()
	defer c.s.Close()
	for {
		select {
		case change, more := <-changes:
			if !more {
				_ = c.s.WriteClose(1008, "too slow", time.Second) // a courtesy
				return
			}
			name, body := c.d.named(change, &s)
			c.mu.Lock()
			wanted := c.watches
			c.mu.Unlock()
			if !wanted {
				continue
			}
			if err := c.send(map[string]any{name: body}); err != nil {
				return
			}
		case <-ping.C:
			if _, err := c.s.Ping(); err != nil {
				return
			}
		case <-c.d.done:
			_ = c.s.WriteClose(1001, "", time.Second) // a courtesy
			return
		case <-c.left:
			return
		}
	}
}
