package caddymodule

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/iottunnel/iottunnel/tunnelcore/redisregistry"
	"github.com/iottunnel/iottunnel/tunnelcore/registry"
)

func init() {
	caddy.RegisterModule(RedisRegistry{})
}

// RedisRegistry keeps the records in Redis 6.2 or later, where they outlive this
// machine. Caddy starts without it, too: devices are let in once it answers, and
// those that are connected stay reachable when it goes away.
//
// One of `url`, `sentinel` and `cluster` says where Redis is. Placeholders such
// as {env.REDIS_PASSWORD} are replaced in every value.
type RedisRegistry struct {
	// A single server: redis://[user:password@]host[:port][/database], rediss://
	// for TLS, or unix:///path/to/socket[?db=database].
	URL string `json:"url,omitempty"`
	// The master that sentinels watch; a failover is followed.
	Sentinel *RedisSentinel `json:"sentinel,omitempty"`
	// Addresses, host:port, of some nodes of a Redis Cluster.
	Cluster []string `json:"cluster,omitempty"`

	// What all keys begin with. Default: `iottunnel:`.
	KeyPrefix string `json:"key_prefix,omitempty"`
	// The ACL user, instead of one in the URL. Default: Redis' `default`.
	Username string `json:"username,omitempty"`
	// Its password, instead of one in the URL.
	Password string `json:"password,omitempty"`
	// The number of the database, for Sentinel. Default: 0.
	Database int `json:"database,omitempty"`
	// How TLS is spoken. Default: not at all, but for rediss:// with the system's
	// authorities.
	TLS *RedisTLS `json:"tls,omitempty"`
	// Bounds connecting. Default: 2s.
	DialTimeout caddy.Duration `json:"dial_timeout,omitempty"`
	// Bounds each read and write. Default: 2s.
	Timeout caddy.Duration `json:"timeout,omitempty"`
	// Bounds the connections to each server. Default: 10 per processor.
	PoolSize int `json:"pool_size,omitempty"`

	options  redisregistry.Options
	identity string
}

// RedisSentinel says which master, and where its sentinels are.
type RedisSentinel struct {
	// The name under which they watch it.
	Master string `json:"master,omitempty"`
	// Where they are, host:port.
	Addresses []string `json:"addresses,omitempty"`
	// The user and the password for the sentinels themselves.
	Username string `json:"username,omitempty"`
	Password string `json:"password,omitempty"`
}

// RedisTLS says how TLS is spoken with Redis.
type RedisTLS struct {
	// A file with the authorities to trust, in PEM. Default: the system's.
	CA string `json:"ca,omitempty"`
	// Files with this client's certificate and key, in PEM.
	Cert string `json:"cert,omitempty"`
	Key  string `json:"key,omitempty"`
	// The name in the server's certificate. Default: its host.
	ServerName string `json:"server_name,omitempty"`
	// If true, the server's certificate is not verified: whoever is on the way can
	// pretend to be Redis. Default: false.
	InsecureSkipVerify bool `json:"insecure_skip_verify,omitempty"`
}

// CaddyModule returns the Caddy module information.
func (RedisRegistry) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "iottunnel.registries.redis",
		New: func() caddy.Module { return new(RedisRegistry) },
	}
}

// Provision replaces placeholders and reads certificates. It connects to nothing.
func (r *RedisRegistry) Provision(caddy.Context) error {
	o := redisregistry.Options{
		DB:          r.Database,
		DialTimeout: time.Duration(r.DialTimeout),
		Timeout:     time.Duration(r.Timeout),
		PoolSize:    r.PoolSize,
	}
	repl := caddy.NewReplacer()
	var errs []error
	expand := func(setting, value string) string {
		value, err := repl.ReplaceOrErr(value, true, true)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", setting, err))
		}
		return value
	}
	o.URL = expand("url", r.URL)
	o.KeyPrefix = expand("key_prefix", r.KeyPrefix)
	o.Username = expand("username", r.Username)
	o.Password = expand("password", r.Password)
	for _, address := range r.Cluster {
		o.Cluster = append(o.Cluster, expand("cluster", address))
	}
	if s := r.Sentinel; s != nil {
		o.Sentinel = &redisregistry.Sentinel{
			Master:   expand("sentinel", s.Master),
			Username: expand("sentinel: username", s.Username),
			Password: expand("sentinel: password", s.Password),
		}
		for _, address := range s.Addresses {
			o.Sentinel.Addrs = append(o.Sentinel.Addrs, expand("sentinel", address))
		}
	}
	var files RedisTLS
	if r.TLS != nil {
		files = *r.TLS
		files.CA = expand("tls: ca", files.CA)
		files.Cert = expand("tls: cert", files.Cert)
		files.Key = expand("tls: key", files.Key)
		files.ServerName = expand("tls: server_name", files.ServerName)
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	// What makes it another registry, without secrets in the clear.
	text, err := json.Marshal([]any{o, files})
	if err != nil {
		return err
	}
	sum := sha256.Sum256(text)
	r.identity = "redis:" + hex.EncodeToString(sum[:])
	if r.TLS != nil {
		if o.TLS, err = files.config(); err != nil {
			return fmt.Errorf("tls: %w", err)
		}
	}
	r.options = o
	return nil
}

func (t RedisTLS) config() (*tls.Config, error) {
	c := &tls.Config{
		MinVersion:         tls.VersionTLS12,
		ServerName:         t.ServerName,
		InsecureSkipVerify: t.InsecureSkipVerify,
	}
	if t.CA != "" {
		pem, err := os.ReadFile(t.CA)
		if err != nil {
			return nil, fmt.Errorf("ca: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("ca: %s holds no certificate in PEM", t.CA)
		}
	}
	if t.Cert != "" || t.Key != "" {
		pair, err := tls.LoadX509KeyPair(t.Cert, t.Key)
		if err != nil {
			return nil, fmt.Errorf("cert, key: %w", err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}

// Validate finds options that can never work.
func (r *RedisRegistry) Validate() error {
	reg, err := redisregistry.Open(context.Background(), r.options) // connects to nothing yet
	if err != nil {
		return err
	}
	return reg.Close()
}

// Identity stands for all options.
func (r *RedisRegistry) Identity() string { return r.identity }

// Open makes the registry. Whether Redis answers is seen later.
func (r *RedisRegistry) Open(logger *slog.Logger) (registry.Registry, error) {
	o := r.options
	o.Logger = logger
	return redisregistry.Open(context.Background(), o)
}

var redisSettings = []setting[*RedisRegistry]{
	{"sentinel", (*RedisRegistry).parseSentinel},
	textsSetting("registry redis: cluster", func(r *RedisRegistry) *[]string { return &r.Cluster }, "addresses such as 10.0.0.1:6379"),
	textSetting("registry redis: key_prefix", func(r *RedisRegistry) *string { return &r.KeyPrefix }, "a prefix such as iottunnel:"),
	textSetting("registry redis: username", func(r *RedisRegistry) *string { return &r.Username }, "a name"),
	textSetting("registry redis: password", func(r *RedisRegistry) *string { return &r.Password }, "a secret such as {env.REDIS_PASSWORD}"),
	countSetting("registry redis: database", func(r *RedisRegistry) *int { return &r.Database }),
	{"tls", (*RedisRegistry).parseTLS},
	durationSetting("registry redis: dial_timeout", func(r *RedisRegistry) *caddy.Duration { return &r.DialTimeout }),
	durationSetting("registry redis: timeout", func(r *RedisRegistry) *caddy.Duration { return &r.Timeout }),
	countSetting("registry redis: pool_size", func(r *RedisRegistry) *int { return &r.PoolSize }),
}

// UnmarshalCaddyfile sets up the registry from Caddyfile tokens. Syntax:
//
//	registry redis [<url>] {
//		sentinel     <master> <addresses...> {
//			username <name>
//			password <secret>
//		}
//		cluster      <addresses...>
//		key_prefix   <prefix>
//		username     <name>
//		password     <secret>
//		database     <number>
//		tls {
//			ca          <file>
//			cert        <file>
//			key         <file>
//			server_name <name>
//			insecure_skip_verify
//		}
//		dial_timeout <duration>
//		timeout      <duration>
//		pool_size    <number>
//	}
//
// One of a URL, sentinel and cluster is required.
func (r *RedisRegistry) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the driver's name
	switch args := d.RemainingArgs(); len(args) {
	case 0:
	case 1:
		r.URL = args[0]
	default:
		return d.Errf("registry redis: takes one URL, given %d values", len(args))
	}
	return parseBlock(d, "registry redis", r, redisSettings)
}

var sentinelSettings = []setting[*RedisSentinel]{
	textSetting("sentinel: username", func(s *RedisSentinel) *string { return &s.Username }, "a name"),
	textSetting("sentinel: password", func(s *RedisSentinel) *string { return &s.Password }, "a secret"),
}

func (r *RedisRegistry) parseSentinel(d *caddyfile.Dispenser) error {
	args := d.RemainingArgs()
	if len(args) < 2 {
		return d.Errf("registry redis: sentinel: takes the master's name and addresses of sentinels, given %d values", len(args))
	}
	r.Sentinel = &RedisSentinel{Master: args[0], Addresses: args[1:]}
	return parseBlock(d, "sentinel", r.Sentinel, sentinelSettings)
}

var redisTLSSettings = []setting[*RedisTLS]{
	textSetting("tls: ca", func(t *RedisTLS) *string { return &t.CA }, "a file"),
	textSetting("tls: cert", func(t *RedisTLS) *string { return &t.Cert }, "a file"),
	textSetting("tls: key", func(t *RedisTLS) *string { return &t.Key }, "a file"),
	textSetting("tls: server_name", func(t *RedisTLS) *string { return &t.ServerName }, "a name"),
	flagSetting("tls: insecure_skip_verify", func(t *RedisTLS) *bool { return &t.InsecureSkipVerify }),
}

func (r *RedisRegistry) parseTLS(d *caddyfile.Dispenser) error {
	r.TLS = new(RedisTLS)
	if err := noValue(d, "registry redis: tls"); err != nil {
		return err
	}
	return parseBlock(d, "tls", r.TLS, redisTLSSettings)
}

// Interface guards
var (
	_ caddy.Provisioner     = (*RedisRegistry)(nil)
	_ caddy.Validator       = (*RedisRegistry)(nil)
	_ caddyfile.Unmarshaler = (*RedisRegistry)(nil)
	_ RegistryOpener        = (*RedisRegistry)(nil)
)
