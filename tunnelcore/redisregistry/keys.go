package redisregistry

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// keys names the keys of the schema. What stands in braces decides the slot in a
// cluster; every script touches one.
type keys struct{ prefix string }

func (k keys) schema() string            { return k.prefix + "schema" }
func (k keys) fresh() string             { return k.prefix + "schema:new" }
func (k keys) hints() string             { return k.prefix + "hints" } // a channel
func (k keys) device(id string) string   { return k.prefix + "device:{" + id + "}" }
func (k keys) lease(label string) string { return k.prefix + "lease:{" + label + "}" }
func (k keys) node(id string) string     { return k.prefix + "node:{" + id + "}" }
func (k keys) nodes() string             { return k.prefix + "nodes" }
func (k keys) devices() string           { return k.prefix + "devices" }
func (k keys) ports() string             { return k.prefix + "{ports}" }
func (k keys) portDevices() string       { return k.prefix + "{ports}:device" }
func (k keys) portVersion() string       { return k.prefix + "{ports}:version" }
func (k keys) portOp(op string) string   { return k.prefix + "{ports}:op:" + op }

// portKeys are the keys of scripts that lease public ports and give them back.
func (k keys) portKeys() []string {
	return []string{k.ports(), k.portDevices(), k.portVersion()}
}

// checkPrefix refuses a prefix that would move keys to other slots.
func checkPrefix(prefix string) error {
	if strings.ContainsAny(prefix, "{}") {
		return fmt.Errorf("key prefix %q: braces are cluster hash tags and not allowed in it", prefix)
	}
	return nil
}

// encodePorts writes ports as the field of a device: "22=40000,80=40001", in the
// order of the device's ports.
func encodePorts(ports map[uint16]uint16) string {
	var b strings.Builder
	for _, port := range slices.Sorted(maps.Keys(ports)) {
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, "%d=%d", port, ports[port])
	}
	return b.String()
}

// decodePorts reads what encodePorts has written; nil when there are none.
func decodePorts(text string) (map[uint16]uint16, error) {
	if text == "" {
		return nil, nil
	}
	ports := map[uint16]uint16{}
	for pair := range strings.SplitSeq(text, ",") {
		port, public, ok := strings.Cut(pair, "=")
		p, err := strconv.ParseUint(port, 10, 16)
		q, err2 := strconv.ParseUint(public, 10, 16)
		if !ok || err != nil || err2 != nil {
			return nil, fmt.Errorf("ports %q: want PORT=PUBLIC, separated by commas", text)
		}
		ports[uint16(p)] = uint16(q)
	}
	return ports, nil
}

// A rest is a public port that rests: whose it was, and until when, in
// milliseconds of Redis time.
type rest struct {
	port, public uint16
	end          int64
}

// encodeRests writes rests as the field of a device: "22=40000=1760000000000",
// separated by commas.
func encodeRests(rests []rest) string {
	var b strings.Builder
	for i, e := range rests {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, "%d=%d=%d", e.port, e.public, e.end)
	}
	return b.String()
}

// decodeRests reads what encodeRests has written.
func decodeRests(text string) ([]rest, error) {
	if text == "" {
		return nil, nil
	}
	var rests []rest
	for entry := range strings.SplitSeq(text, ",") {
		port, more, _ := strings.Cut(entry, "=")
		public, end, _ := strings.Cut(more, "=")
		p, err := strconv.ParseUint(port, 10, 16)
		q, err2 := strconv.ParseUint(public, 10, 16)
		ms, err3 := strconv.ParseInt(end, 10, 64)
		if err != nil || err2 != nil || err3 != nil {
			return nil, fmt.Errorf("rests %q: want PORT=PUBLIC=MS, separated by commas", text)
		}
		rests = append(rests, rest{uint16(p), uint16(q), ms})
	}
	return rests, nil
}

// portOwner is what a public port belongs to: a port of a device.
func portOwner(device string, port uint16) string {
	return device + ":" + strconv.Itoa(int(port))
}
