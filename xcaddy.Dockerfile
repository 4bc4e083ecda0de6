# An image of Caddy with iottunnel, built from this checkout:
#
#   docker build -f xcaddy.Dockerfile -t iottunnel-edge .
#   docker run -p 80:80 -p 443:443 -p 443:443/udp \
#     -v "$PWD/Caddyfile:/etc/caddy/Caddyfile:ro" -v caddy_data:/data iottunnel-edge
#
# The volume holds certificates and the names that devices were given.

ARG CADDY_VERSION=2.11.9

FROM caddy:${CADDY_VERSION}-builder AS build
# Further modules, for instance the DNS provider that wildcard certificates need:
#   --build-arg XCADDY_ARGS="--with github.com/caddy-dns/cloudflare"
ARG XCADDY_ARGS=""
COPY . /src
# xcaddy finds the version of Caddy in the image's own CADDY_VERSION.
#
# The import path of the plugin lies inside a module that is taken from /src. Go
# still looks for a module of that longer name; where no proxy has one, `|off`
# ends the search, whatever the proxy answers.
#
# The binary may use ports below 1024 as any user. Permitted, but not effective
# by itself: so it also starts where the capability was taken away, and Caddy
# raises it where it was not.
RUN export GOPROXY="$(go env GOPROXY | sed 's/,direct$//')|off" \
	&& xcaddy build \
		--output /usr/bin/caddy \
		--with github.com/iottunnel/iottunnel/caddymodule \
		--replace github.com/iottunnel/iottunnel=/src \
		${XCADDY_ARGS} \
	&& setcap cap_net_bind_service=p /usr/bin/caddy \
	&& caddy list-modules | grep -x http.handlers.iottunnel

FROM caddy:${CADDY_VERSION}
ARG VERSION=unknown
LABEL org.opencontainers.image.title="iottunnel edge" \
	org.opencontainers.image.description="Caddy with iottunnel: reaches devices behind NAT through the WebSockets they open" \
	org.opencontainers.image.source="https://github.com/iottunnel/iottunnel" \
	org.opencontainers.image.version="${VERSION}"

COPY --from=build /usr/bin/caddy /usr/bin/caddy
RUN mkdir -p /data/caddy /config/caddy \
	&& chown -R 1001:0 /data /config \
	&& chmod -R g+rwX /data /config

# A number needs no account; platforms that choose another one keep the group.
USER 1001:0
EXPOSE 80 443 443/udp
STOPSIGNAL SIGTERM
# Caddy's admin endpoint answers while Caddy runs; with `admin off` or another
# address, name something else that does.
ENV HEALTH_URL=http://127.0.0.1:2019/reverse_proxy/upstreams
HEALTHCHECK --interval=15s --timeout=3s --start-period=10s CMD curl -fsS -o /dev/null "$HEALTH_URL" || exit 1
