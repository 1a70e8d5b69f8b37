#!/usr/bin/env bash
# Start the servers that tests and `make run` use and that do not answer yet, on loopback: PostgreSQL, RabbitMQ, Redis,
# and an S3 store (Ceph radosgw); nginx is installed, no more. On Debian what is not installed is fetched with apt. For trying
# out and for tests only: nothing asks for a password that is worth the name.
# Usage: deploy/services.sh [postgres] [rabbitmq] [redis] [s3] [nginx]
set -euo pipefail

DIR=${TUTTI_SERVICES_DIR:-/var/tmp/tutti-services}
S3_PORT=${TUTTI_S3_PORT:-39400}
S3_KEY=tutti-test S3_SECRET=tutti-test-secret
mkdir -p "$DIR"

answers() { (exec 3<> "/dev/tcp/127.0.0.1/$1") 2> /dev/null; }

wait_for() { # port name log
    for _ in $(seq 120); do
        answers "$1" && return
        sleep 0.5
    done
    echo "$2 does not answer on port $1 after a minute; see $3" >&2
    exit 1
}

need() { # command packages...
    local command=$1
    shift
    type -P "$command" > /dev/null && return
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "$@" > /dev/null
}

# Debian's packages start servers of their own as they are installed; the ports tell.
postgres() {
    answers 5432 && return
    PATH=$PATH:$(echo /usr/lib/postgresql/*/bin | tr ' ' :)
    need initdb postgresql
    answers 5432 && return
    PATH=$PATH:$(echo /usr/lib/postgresql/*/bin | tr ' ' :)
    local data=$DIR/postgres as=(env)
    if [ "$(id -u)" = 0 ]; then # which the server refuses to run as
        as=(setpriv --reuid postgres --regid postgres --clear-groups env)
        mkdir -p "$data"
        chown postgres "$data"
    fi
    [ -f "$data/PG_VERSION" ] || (cd / && "${as[@]}" PATH="$PATH" initdb -D "$data" -U postgres --auth=trust > /dev/null)
    (cd / && "${as[@]}" PATH="$PATH" pg_ctl -D "$data" -l "$data/log" -w start \
        -o "-c listen_addresses=127.0.0.1 -c unix_socket_directories=''" > /dev/null)
}

rabbitmq() {
    answers 5672 && return
    need rabbitmq-server rabbitmq-server
    answers 5672 && return
    ulimit -n 65536 2> /dev/null || ulimit -n "$(ulimit -Hn)" # with fewer files it stops taking connections
    RABBITMQ_NODENAME=tutti@localhost RABBITMQ_NODE_IP_ADDRESS=127.0.0.1 rabbitmq-server -detached > "$DIR/rabbitmq.log" 2>&1
    wait_for 5672 RabbitMQ "$DIR/rabbitmq.log"
}

redis() {
    answers 6379 && return
    need redis-server redis-server
    answers 6379 && return
    redis-server --bind 127.0.0.1 --port 6379 --save '' --daemonize yes --dir "$DIR" --logfile "$DIR/redis.log" > /dev/null
    wait_for 6379 Redis "$DIR/redis.log"
}

s3() {
    answers "$S3_PORT" && return
    need radosgw ceph-mon ceph-osd ceph-common radosgw
    local ceph=$DIR/s3 fsid osd
    rm -rf "$ceph"
    mkdir -p "$ceph"/{run,mon,osd,rgw}
    fsid=$(cat /proc/sys/kernel/random/uuid)
    export CEPH_CONF=$ceph/ceph.conf
    cat > "$CEPH_CONF" << CONF
[global]
fsid = $fsid
mon_initial_members = a
mon_host = [v2:127.0.0.1:$((S3_PORT + 3))/0,v1:127.0.0.1:$((S3_PORT + 4))/0]
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
ms_bind_ipv6 = false
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 4
osd_pool_default_pgp_num = 4
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_data_avail_crit = 1
mon_max_pg_per_osd = 1000
osd_objectstore = bluestore
bluestore_block_size = 8589934592
osd_memory_target = 939524096
mon_data = $ceph/mon
osd_data = $ceph/osd
run_dir = $ceph/run
log_file = $ceph/\$name.log
admin_socket = $ceph/run/\$name.asok
keyring = $ceph/keyring
[client.rgw.a]
rgw_frontends = beast endpoint=127.0.0.1:$S3_PORT tcp_nodelay=1
rgw_data = $ceph/rgw
keyring = $ceph/keyring
CONF
    (
        cd "$ceph"
        ceph-authtool -C keyring --gen-key -n mon. --cap mon 'allow *'
        ceph-authtool keyring --gen-key -n client.admin --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *'
        ceph-authtool keyring --gen-key -n osd.0 --cap mon 'allow profile osd' --cap osd 'allow *'
        ceph-authtool keyring --gen-key -n client.rgw.a --cap mon 'allow rwx' --cap osd 'allow rwx'
        monmaptool --create --fsid "$fsid" --addv a "[v2:127.0.0.1:$((S3_PORT + 3)),v1:127.0.0.1:$((S3_PORT + 4))]" monmap
        ceph-mon --mkfs -i a --monmap monmap --keyring keyring
        setsid ceph-mon -i a -f > mon.out 2>&1 < /dev/null &
        until timeout 20 ceph auth import -i keyring; do sleep 0.5; done
        osd=$(cat /proc/sys/kernel/random/uuid)
        ceph osd new "$osd"
        ceph-osd -i 0 --mkfs --osd-uuid "$osd"
        setsid ceph-osd -i 0 -f > osd.out 2>&1 < /dev/null &
        setsid radosgw -n client.rgw.a -f > rgw.out 2>&1 < /dev/null &
    ) > "$ceph/start.log" 2>&1
    wait_for "$S3_PORT" "the S3 store" "$ceph/start.log"
    radosgw-admin -n client.rgw.a user create --uid tutti --display-name tutti \
        --access-key "$S3_KEY" --secret-key "$S3_SECRET" > "$ceph/user.log" 2>&1
}

nginx() { # tests start it themselves
    PATH=$PATH:/usr/sbin
    need nginx nginx-light
}

for service in "${@:-postgres rabbitmq redis s3 nginx}"; do
    for each in $service; do "$each"; done
done
echo "PostgreSQL  postgresql://postgres@127.0.0.1:5432/postgres"
echo "RabbitMQ    amqp://guest:guest@127.0.0.1:5672/"
echo "Redis       redis://127.0.0.1:6379/"
echo "S3          http://127.0.0.1:$S3_PORT  (key $S3_KEY, secret $S3_SECRET)"
