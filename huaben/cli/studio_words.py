"""Words of ``huaben studio``, in English and Chinese; both catalogues have the same keys."""

from __future__ import annotations

from .words import language

TEXTS: dict[str, dict[str, str]] = {
    "en": {
        "allow_host": "A name the studio is reached by, such as studio.example.org; repeatable.",
        "attempts": "Pictures painted at most before the best is kept.",
        "data": "Folder of stories and pictures. [default: HUABEN_HOME, else your data folder]",
        "database": "PostgreSQL or SQLite address instead of the folder's own file.",
        "host": "Address to listen on; any but this computer's own needs a token.",
        "needs_token": "{host} can be reached by others, and no token exists",
        "open": "Open the page in the browser.",
        "painters": "Pictures painted at once.",
        "port": "Port; 0 takes a free one.",
        "ready": "The studio is ready: {where}  (stop it with Ctrl+C)",
        "size": "Height x width of new stories' pictures.",
        "steps": "Denoising steps of new stories.",
        "storage": "fsspec address for picture files, such as s3://bucket/pictures.",
        "timeout": "Seconds after which a message is given up.",
        "token": "Accounts: one token each.",
        "token_add": "Make an account and print its token, once.",
        "token_gone": "The account {name} is gone, with its stories.",
        "token_list": "List the accounts.",
        "token_made": "The token of {name}; it is shown only now:",
        "token_none": "There are no accounts; only this computer is served.",
        "token_revoke": "Remove an account and its stories.",
    },
    "zh": {
        "allow_host": "访问工作室所用的名字，例如 studio.example.org；可重复。",
        "attempts": "最多画几张，保留最好的一张。",
        "data": "存放故事和图片的目录。[默认：HUABEN_HOME，否则是你的数据目录]",
        "database": "用 PostgreSQL 或 SQLite 地址代替目录里的数据库文件。",
        "host": "监听地址；除本机地址外都需要令牌。",
        "needs_token": "{host} 可以被他人访问，但还没有令牌",
        "open": "在浏览器里打开页面。",
        "painters": "同时画几张图。",
        "port": "端口；0 表示任选一个空闲端口。",
        "ready": "工作室已就绪：{where}（按 Ctrl+C 停止）",
        "size": "新故事图片的高 x 宽。",
        "steps": "新故事的去噪步数。",
        "storage": "存放图片文件的 fsspec 地址，例如 s3://bucket/pictures。",
        "timeout": "一条消息最多处理多少秒。",
        "token": "账户：每个账户一个令牌。",
        "token_add": "新建账户，并打印一次令牌。",
        "token_gone": "账户 {name} 和它的故事已删除。",
        "token_list": "列出账户。",
        "token_made": "{name} 的令牌，只显示这一次：",
        "token_none": "还没有账户，只服务本机。",
        "token_revoke": "删除账户和它的故事。",
    },
}


def tell(key: str, **values: object) -> str:
    """Return a text in the language chosen."""
    return TEXTS[language()][key].format(**values)
