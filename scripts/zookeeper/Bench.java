import java.util.Arrays;
import java.util.Random;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicLong;
import org.apache.zookeeper.AsyncCallback;
import org.apache.zookeeper.CreateMode;
import org.apache.zookeeper.KeeperException.Code;
import org.apache.zookeeper.Watcher.Event.KeeperState;
import org.apache.zookeeper.ZKUtil;
import org.apache.zookeeper.ZooDefs.Ids;
import org.apache.zookeeper.ZooKeeper;

/**
 * The rows of `zabfs bench metadata` on ZooKeeper: 100-byte znodes; asynchronous calls, the next of each slot from the
 * answer of the one before. Bench SERVERS SECONDS ZNODES RATE ROWS; every session starts at a server of its own choice.
 */
public final class Bench {
    private static final String ROOT = "/bench";
    private static final byte[] VALUE = new byte[100];
    private static final int SESSIONS = 10;
    private static final int DEPTH = 100;

    private final ZooKeeper[] sessions = new ZooKeeper[SESSIONS];
    private final int seconds;
    private final int znodes;
    private final AtomicLong names = new AtomicLong();
    private final AtomicInteger failures = new AtomicInteger();
    /** Microseconds of each operation; a slot of its own for each. */
    private final int[] latencies = new int[40_000_000];
    private final AtomicInteger count = new AtomicInteger();

    private Bench(String servers, int seconds, int znodes) throws Exception {
        this.seconds = seconds;
        this.znodes = znodes;
        for (int i = 0; i < SESSIONS; i++) {
            CountDownLatch connected = new CountDownLatch(1);
            sessions[i] = new ZooKeeper(servers, 10_000, event -> {
                if (event.getState() == KeeperState.SyncConnected) {
                    connected.countDown();
                }
            });
            if (!connected.await(30, TimeUnit.SECONDS)) {
                throw new IllegalStateException("no connection to " + servers);
            }
        }
        Arrays.fill(VALUE, (byte) 'z');
    }

    public static void main(String[] args) throws Exception {
        Bench bench = new Bench(args[0], Integer.parseInt(args[1]), Integer.parseInt(args[2]));
        int rate = Integer.parseInt(args[3]);
        System.out.printf("%-12s%9s%7s%10s%10s%10s%10s%n", "row", "sessions", "depth", "ops/s", "p50 us", "p99 us", "max us");
        bench.remove();
        bench.sessions[0].create(ROOT, VALUE, Ids.OPEN_ACL_UNSAFE, CreateMode.PERSISTENT);
        bench.fill();
        for (String row : args[4].split(",")) {
            if (row.equals("paced_set")) {
                bench.paced(rate);
                continue;
            }
            for (int[] shape : new int[][] {{1, 1}, {1, DEPTH}, {SESSIONS, DEPTH}}) {
                bench.closedLoop(row, shape[0], shape[1]);
            }
        }
        bench.remove();
        for (ZooKeeper session : bench.sessions) {
            session.close();
        }
        if (bench.failures.get() > 0) {
            System.err.println(bench.failures.get() + " operations failed");
            System.exit(1);
        }
    }

    private void remove() throws Exception {
        if (sessions[0].exists(ROOT, false) != null) {
            ZKUtil.deleteRecursive(sessions[0], ROOT, 1000);
        }
    }

    private void fill() throws Exception {
        CountDownLatch left = new CountDownLatch(Math.min(znodes, SESSIONS * DEPTH));
        for (long slot = left.getCount(); slot > 0; slot--) {
            fillNext(sessions[(int) (slot % SESSIONS)], left);
        }
        left.await();
        count.set(0);
    }

    private void fillNext(ZooKeeper session, CountDownLatch left) {
        if (names.get() >= znodes) {
            left.countDown();
            return;
        }
        start("create", session, () -> fillNext(session, left));
    }

    private void closedLoop(String row, int users, int depth) throws Exception {
        long began = System.nanoTime();
        long until = began + TimeUnit.SECONDS.toNanos(seconds);
        CountDownLatch left = new CountDownLatch(users * depth);
        for (int slot = 0; slot < users * depth; slot++) {
            next(row, sessions[slot % users], until, left);
        }
        left.await();
        report(row, users, Integer.toString(depth), began);
    }

    private void next(String row, ZooKeeper session, long until, CountDownLatch left) {
        if (System.nanoTime() >= until) {
            left.countDown();
            return;
        }
        start(row, session, () -> next(row, session, until, left));
    }

    private void paced(int rate) throws Exception {
        long began = System.nanoTime();
        long total = (long) rate * seconds;
        CountDownLatch left = new CountDownLatch((int) total);
        for (long sent = 0; sent < total;) {
            long due = Math.min(total, (System.nanoTime() - began) * rate / 1_000_000_000L);
            for (; sent < due; sent++) {
                start("set", sessions[(int) (sent % SESSIONS)], began + sent * 1_000_000_000L / rate, left::countDown);
            }
            Thread.sleep(1);
        }
        left.await();
        report("paced_set", SESSIONS, "paced", began);
    }

    private void start(String row, ZooKeeper session, Runnable then) {
        start(row, session, System.nanoTime(), then);
    }

    private void start(String row, ZooKeeper session, long began, Runnable then) {
        Random random = ThreadLocalRandom.current();
        boolean isSet = row.equals("set") || (row.equals("mixed") && random.nextInt(3) == 0);
        if (row.equals("create")) {
            String path = ROOT + "/z" + names.getAndIncrement();
            AsyncCallback.StringCallback answer = (code, p, context, name) -> note(code, began, then);
            session.create(path, VALUE, Ids.OPEN_ACL_UNSAFE, CreateMode.PERSISTENT, answer, null);
        } else if (isSet) {
            AsyncCallback.StatCallback answer = (code, p, context, stat) -> note(code, began, then);
            session.setData(ROOT + "/z" + random.nextInt(znodes), VALUE, -1, answer, null);
        } else {
            AsyncCallback.DataCallback answer = (code, p, context, data, stat) -> note(code, began, then);
            session.getData(ROOT + "/z" + random.nextInt(znodes), false, answer, null);
        }
    }

    private void note(int code, long began, Runnable then) {
        if (code != Code.OK.intValue()) {
            failures.incrementAndGet();
        }
        int slot = count.getAndIncrement();
        if (slot < latencies.length) {
            latencies[slot] = (int) ((System.nanoTime() - began) / 1000);
        }
        then.run();
    }

    private void report(String row, int users, String depth, long began) {
        double took = (System.nanoTime() - began) / 1e9;
        int done = count.getAndSet(0);
        int kept = Math.min(done, latencies.length);
        Arrays.sort(latencies, 0, kept);
        System.out.printf("%-12s%9d%7s%10.0f%10d%10d%10d%n", row, users, depth, done / took, quantile(kept, 0.5),
            quantile(kept, 0.99), quantile(kept, 1));
    }

    private int quantile(int kept, double share) {
        return kept == 0 ? 0 : latencies[Math.max(1, (int) Math.ceil(kept * share)) - 1];
    }
}
