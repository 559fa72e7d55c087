"""The words the screenwriter knows, in both languages, beyond the world's own vocabulary.

Plain data: a phrase maps to a kind of token and a key. Whatever is not here and not in the vocabulary is *unknown*,
and the screenwriter says so instead of drawing something else.
"""

from __future__ import annotations

from functools import lru_cache

from ...world.vocabulary import (
    ACCESSORIES,
    BACKGROUNDS,
    COLOURS,
    EXPRESSIONS,
    FACINGS,
    PLACES,
    SIZES,
    SPECIES,
    STYLES,
    Term,
)

Entry = tuple[str, str]
"""Kind and key of a token."""

# ------------------------------------------------------------------------------------------ more names for the world

MORE: dict[str, dict[str, str]] = {
    "species": {
        "cat": "kitties kittens pussycat|花猫 小花猫 喵星人 小猫咪 猫猫",
        "dog": "doggo pup puppies doggies|汪星人 狗子 小狗狗",
        "rabbit": "bunny_rabbit bunnies|兔兔 兔宝宝",
        "bear": "teddy_bear teddies|狗熊 熊宝宝 熊熊",
        "mouse": "|小鼠 耗子",
        "pig": "piggies piglets|猪猪 小猪猪",
        "frog": "|蛤蟆",
        "elephant": "|大笨象",
        "sheep": "lambs|小绵羊 羊羊 小羊羊",
        "bird": "birdies|小鸟儿 鸟类",
        "duck": "ducklings ducky|小鸭 鸭鸭",
        "turtle": "tortoises sea_turtle|小海龟",
        "fish": "fishes|鱼儿 小鱼儿",
        "whale": "|小鲸鱼 大鲸鱼",
        "tree": "|树木 大树 小树",
        "house": "cottages hut|房顶 屋顶 屋 小房子 大房子 木屋",
        "car": "automobile|轿车 小车 汽车",
        "star": "|星 小星星 大星星",
        "flower": "blossom|鲜花 花儿 小花",
        "mushroom": "toadstools|小蘑菇",
        "boat": "ships sailboat|船只 帆船 小船",
        "balloon": "|小气球 大气球",
    },
    "colour": {
        "red": "reddish|大红 火红 通红 朱红",
        "orange": "|橙黄 橘黄",
        "yellow": "|金黄 黄澄澄",
        "green": "|翠绿 绿油油",
        "blue": "|天蓝 湛蓝 蔚蓝",
        "pink": "|粉嫩 粉红色",
        "white": "|雪白 白白",
        "black": "|漆黑 黑黑 黑漆漆",
        "gray": "|灰灰",
        "brown": "|咖啡色 褐",
        "teal": "|青绿",
    },
    "accessory": {
        "hat": "hats caps|帽 小帽子",
        "crown": "crowns|小皇冠 冠",
        "scarf": "scarves scarfs|围脖 围巾",
        "glasses": "eyeglasses sunglasses|墨镜 太阳镜",
        "bowtie": "bow_ties bowties bows|领带结",
        "headphones": "headphone headset|耳麦",
    },
    "expression": {
        "happy": "wake wakes wake_up wakes_up awake woke cheer_up cheers_up excited grin grins grinning smiley delighted merry laughter smile smiles joyful glad happily laughing laughs laugh|笑 笑着 微笑着 开开心心 高高兴兴 愉快 笑眯眯 欢喜 醒 醒来 醒着 醒了 睡醒 笑起来 大笑 兴奋 欢快 乐呵呵 高兴起来 开心起来",
        "sad": "upset gloomy tearful depressed sadly cry cries weeping unhappily|哭 哭着 哭泣 不开心 不高兴 悲哀 流泪 沮丧 委屈 哭泣的 哭了",
        "surprised": "shocked startled|惊奇 震惊 吓了一跳 惊呆 吃惊的 惊喜",
        "angry": "frown frowning frowns angrily furious grumpy annoyed|发怒 恼火 气呼呼 气愤",
        "sleepy": "dozing yawning dozes yawns exhausted sleep sleeps asleep drowsy sleepily|睡 睡着 睡觉 睡着了 犯困 打瞌睡 瞌睡 困困 疲倦 累 疲惫 打盹 打哈欠 睡觉觉 犯困的",
    },
    "facing": {
        "flip": "turn_around turns_around turn_round face_the_other_way look_the_other_way the_other_way flip flipped mirror"
        "|转身 转过身 转过身去 转过来 转过去 调头 掉头 反过来 反方向 另一个方向 换个方向 翻转 转个身 换方向",
        "left": "face_left face_to_the_left faces_left faced_left look_left looks_left look_to_the_left"
        " looking_to_the_left looks_to_the_left facing_to_the_left facing_the_left turn_left turned_left"
        " turned_to_the_left|朝左边 面向左边 面朝左边 朝左看 往左看 看左边 看向左边 看着左边 头朝左 脸朝左 转向左边 转向左 向左转"
        " 朝着左边 望着左边 朝左侧 面对左边",
        "right": "face_right face_to_the_right faces_right faced_right look_right looks_right look_to_the_right"
        " looking_to_the_right looks_to_the_right facing_to_the_right facing_the_right turn_right turned_right"
        " turned_to_the_right|朝右边 面向右边 面朝右边 朝右看 往右看 看右边 看向右边 看着右边 头朝右 脸朝右 转向右边 转向右 向右转"
        " 朝着右边 望着右边 朝右侧 面对右边",
    },
    "size": {
        "small": "smol petite|小小 小个子 小号 个头小 迷你 小小的 小型",
        "medium": "normal-sized normal medium_size|中号 中等大 中等个头 普通大小",
        "large": "enormous giant gigantic|大大 大个子 大号 大大个 个头大 巨大 大大的 大型 高大 庞大",
    },
    "place": {
        "left": "left to_the_left on_the_left_side at_the_left left_side on_the_left_hand_side left-hand_side far_left"
        " on_the_far_left leftmost in_the_left on_the_left-hand_side to_the_left_side bottom_left lower_left"
        " at_the_bottom_left in_the_lower_left|左 左手边 左方 最左边 左下角 左下方 左下 左半边 画面左边",
        "middle": "middle center centre in_the_middle_of_the_picture central|中心 正中间 中间位置 画面中间 正中央",
        "right": "right to_the_right on_the_right_side at_the_right right_side on_the_right_hand_side right-hand_side"
        " far_right on_the_far_right rightmost in_the_right on_the_right-hand_side to_the_right_side bottom_right"
        " lower_right at_the_bottom_right in_the_lower_right|右 右手边 右方 最右边 右下角 右下方 右下 右半边 画面右边",
        "top left": "top_left upper_left in_the_top_left top_left_corner upper_left_corner in_the_top_left_corner"
        " in_the_upper_left_corner to_the_top_left to_the_upper_left at_the_upper_left"
        "|左上面 左上边",
        "top": "top up_high high_up to_the_top at_the_very_top in_the_air upper_middle|顶部 高处 上部 最上面 空中 半空中 半空",
        "top right": "top_right upper_right in_the_top_right top_right_corner upper_right_corner"
        " in_the_top_right_corner in_the_upper_right_corner to_the_top_right to_the_upper_right at_the_upper_right"
        "|右上面 右上边",
        "bottom": "bottom at_the_bottom on_the_ground to_the_bottom on_the_floor|下面 下方 底部 下边 底下 地上 地面上 最下面",
    },
    "background": {
        "beach": "beaches sand seashore by_the_sea coast sandy_beach at_the_seaside coastline waterfront|沙滩上 海滩上 岸边 海岸 海边上",
        "snow": "on_the_ice on_ice snowing snows snowy_day wintertime in_winter ice snowy snowfields winter_wonderland snowy_landscape|雪地里 雪里 雪中 冰上 冰面上 冰面 下雪天 雪天 下雪的日子 冬天里 冰天雪地 下雪 大雪 雪景 冰雪 冬季 冬日 雪地上",
        "forest": "forests woodland jungle|森林里 树林里 树林中 林子里 林子 丛林 林中",
        "night": "nights nightfall by_night after_dark nighttime night-time starry_sky the_night_sky moonlight evening at_midnight midnight"
        "|晚上 黑夜 夜 星夜 夜空下 星空下 月夜 深夜 夜间 半夜 夜晚的天空 夜色 夜晚里 大晚上 天黑 天黑了 晚上的",
        "meadow": "meadows grasslands grassy_field|草地上 草原上 草坪上 草丛 草丛里 原野 田野",
        "sea": "seas under_the_sea the_deep_sea under_water under_the_water deep_sea water on_the_water in_the_water"
        "|海 海面 海面上 海上 水里 水下 水中 海中 大海里 海洋里 水面上 深海",
        "desert": "deserts sand_dunes dunes|沙漠里 大漠 沙丘",
        "city": "cities streets downtown on_the_street|城市里 城里 街头 大街上 大街 马路上 都市 市里",
        "room": "rooms lounge house_interior indoors_room inside_a_room inside_the_house indoor inside_a_house at_home"
        "|房间里 屋子里 家里 卧室里 客厅 客厅里 室内 房里 房子里 屋内",
        "mountain": "hill mountainside on_a_hill mountaintop|山里面 高山上 山坡 山坡上 山顶 山顶上 山中 山间 山区 群山",
        "sky": "cloud in_the_clouds skies|天空中 天空里 蓝天 云上 云朵上 云里 白云 云彩 云 云中",
    },
    "style": {
        "flat": "flat_color flat_colour flat_design|扁平化 平涂",
        "ink": "ink_drawing ink_painting line_drawing lineart outline inked|墨线 线稿 水墨画 线描画 白描 墨水",
        "papercut": "cut_paper paper_cutting papercutting cut-paper paper_cutout cutout paper_cut-out|剪纸画 窗花",
        "crayon": "crayons pencils coloured_pencil colored_pencil coloured_pencils colored_pencils wax_crayon"
        "|蜡笔画 彩色铅笔 铅笔画 彩铅画 铅笔",
        "puppet": "shadow_puppets shadow_theatre shadow_theater puppet puppets shadow_puppetry|皮影画 影子戏 皮影人",
    },
}

PLURAL_SPECIES: frozenset[str] = frozenset(
    "kitties kittens puppies doggies bunnies teddies piggies piglets birdies ducklings lambs tortoises cottages ships"
    " toadstools fishes".split()
)
PLURAL_ACCESSORIES: frozenset[str] = frozenset("hats caps crowns scarves scarfs bow_ties bowties bows".split())

# -------------------------------------------------------------------------------------------------- what to do

COMMANDS: dict[str, str] = {
    "draw": "draw paint create generate draw_me paint_me make_me show_me picture_of drawing_of illustrate sketch"
    " a_picture_of an_image_of a_drawing_of a_painting_of an_illustration_of picture_with depict design render give_me to_see love_to_see illustration_with image_with drawing_with painting_with"
    " once_upon_a_time there_once_was once_there_was there_was_once there_lived there_live what_we_see_is make_a_picture_of make_a_drawing_of draw_a_picture_of"
    "|画 画一张 画一幅 画一个 画个 画出 绘制 生成 画张 画幅 来一张 来一幅 来张 来幅 创作 描绘 做一张 给我画 帮我画 画画 我们看到的是 从前"
    " 一幅画 住着 画一画 重新画 重画",
    "add": "add put_in include also_draw insert bring bring_back bring_in also_add there_should_also_be join joins"
    " visits_him visits_her visits_them visits_it come comes_back comes came came_back come_back appears arrives enters meets meet draw_in"
    " i_also_want copy duplicate"
    "|加 加上 加入 添加 添上 添 加个 加一个 再画 再加 再来 再添 放上 画上 增加 补上 多画 多加 再放 再要 再给 复制 摆上 还要 带上 回来 带回来 叫回来"
    " 碰到 碰见 来找 飞来 跑来 飞回来 游回来 出现 来了 遇见 遇到 加进来 加进去 请来 来 配上",
    "remove": "flies_away flies_off fly_away flew_away floats_away floated_away swims_away runs_away walks_away loses vanish vanishes disappear disappears remove delete erase take_away take_out get_rid_of drop lose hide take_off takes_off takes_away"
    " leave_out kick_out rub_out leaves leave goes_away go_away clear_away wipe"
    "|飞走了 飞走 游走了 游走 跑走了 跑掉了 溜走了 藏起来 藏 弄丢了 丢了 去掉 删掉 删除 移除 拿走 拿掉 擦掉 取下 摘掉 脱掉 摘下 去除 拿开 删 移走 弄走 取消 脱下 抹掉 拿下来 摘下来 取下来 不见 走开 离开"
    " 走了 撤掉 除去 扔掉 清除 摘 摘了 脱 脱了 去掉了 不见了 消失",
    "keep": "keep_only only_keep leave_only keep_just only_leave|只留 只留下 只保留 只要 留下",
    "replace": "replace exchange_for substitute instead_of instead trade swap_out switch_out"
    "|换成了 改成了 变成了 换成 替换 替换成 替换为 换为 换做 代替 取代 换作 替代 变成 变为 改成 改为 改做 换",
    "change": "make change turn recolor recolour color_it dye set become becomes turns let makes should_be to_be edit"
    " adjust modify update turn_into changes coloured colored tint"
    "|改 变 让 使 弄成 涂成 染成 设成 设为 调成 应该是 刷成 画成 上色 改变 修改 调整 变得 涂",
    "dress": "wear wears put_on puts_on dress dressed have_on gets get should_wear borrow borrows"
    "|戴上 戴 戴着 围上 围 围着 穿上 穿 穿着 系上 系 佩戴 系着 配 戴了 头戴 戴到 戴在 戴回",
    "put": "put give gives gave pass passes lend lends|给 送给 递给 借给 还给 让给 交给 传给 拿给 送 放 摆 搁",
    "take": "take takes took|拿 拿掉了",
    "move": "move shift place push drag slide put_over moves stand bring_over send relocate position"
    "|移到 移动 移动到 挪到 放到 放在 搬到 移 挪 移去 移至 站到 移向 拉到 推到 换到 移往 往 走到 跑到 移动至 靠",
    "swap": "swap exchange switch switch_places swap_places trade_places change_places swap_the_positions_of"
    " exchange_places swap_positions"
    "|交换 互换 对调 调换 交换位置 互换位置 换位置 换个位置 换一下位置 调换位置 对调位置 交换一下位置 交换一下 位置互换 位置交换",
    "enlarge": "enlarge grow magnify scale_up|放大 变大 长大 弄大 加大",
    "shrink": "shrink reduce scale_down|缩小 变小 弄小 减小",
    "goto": "go goes went go_to goes_to went_to walk walks walk_to walks_to travel travels visit visits visiting is_now_in"
    " they_go is_walking_to run_to runs_to goes_into walks_into arrive_at arrives_at"
    "|去 来到 前往 到了 去到 回到 走进",
}

UNDO = (
    "undo", "go back", "revert", "undo that", "undo it", "step back", "take that back", "go back one step", "undo please",
    "previous picture", "the previous one", "go back to the previous one", "back", "restore", "cancel that",
    "go back to the last one", "undo the last change", "revert that", "undo the change", "go back to the previous picture",
    "undo last", "bring back the previous picture", "return to the previous one", "i liked the previous one better",
    "撤销", "撤回", "上一步", "返回", "返回上一步", "退回", "退回上一步", "上一张", "回到上一张", "还原", "取消刚才的修改", "撤销刚才的修改",
    "恢复上一张", "撤销上一步", "取消上一步", "恢复", "退回上一张", "返回上一张", "回退", "刚才那张", "回到刚才那张", "取消修改", "倒回去",
    "撤销一下", "回到上一步", "恢复原样", "改回去", "变回去", "变回来", "改回来", "还是上一张好",
)  # fmt: skip
AGAIN = (
    "try again", "draw it again", "once more", "again", "redraw", "redraw it", "one more time", "another try", "do it again",
    "draw again", "paint it again", "draw that again", "repaint it",
    "再画一次", "再试一次", "重画", "再来一次", "重新画", "重新画一次", "重新画一张", "换一张", "再画一遍", "重画一张", "重来一次",
)  # fmt: skip
DISLIKE = (
    "i don't like it", "i do not like it", "i don't like this", "i don't like that", "that's wrong", "this is wrong", "wrong",
    "that's not right", "not what i wanted", "that's not what i wanted", "bad", "ugly", "it's ugly", "not good", "it's wrong",
    "我不喜欢", "不喜欢", "不好看", "不对", "画错了", "不是这样", "不好", "错了", "画得不对", "不是我要的", "太丑了", "不满意",
)  # fmt: skip
REDO = ("redo", "redo it", "redo that", "重做", "恢复撤销", "取消撤销", "前进一步")
YES = (
    "yes", "yeah", "yep", "yup", "ok", "okay", "sure", "please do", "go ahead", "fine", "good", "yes please", "sounds good",
    "that's fine", "do it", "please", "alright", "all right", "of course", "draw it", "yes do it", "why not", "yes go ahead",
    "ok go ahead", "sure go ahead", "y", "right", "great", "ok then", "yes thanks", "yes draw it", "correct",
    "好", "好的", "可以", "行", "嗯", "是", "是的", "对", "当然", "没问题", "画吧", "好吧", "可以的", "好啊", "好呀", "行吧", "嗯嗯", "要", "对的",
    "那就这样", "就这样", "好的画吧", "可以画吧", "行啊", "ok的", "好滴", "没关系画吧", "那就不要了", "就这样画", "同意", "好的谢谢", "没错",
)  # fmt: skip
NO = (
    "stop it", "no", "nope", "no thanks", "never mind", "nevermind", "not now", "no thank you", "forget it", "cancel", "don't", "n",
    "no need", "stop", "nah",
    "停", "停下", "不", "不用", "不要", "算了", "不了", "不用了", "不要了", "不行", "别", "取消", "不必", "别画了", "不是", "不需要",
)  # fmt: skip
GREETINGS = (
    "hi", "hello", "hey", "good morning", "good afternoon", "good evening", "hi there", "hello there", "how are you",
    "hey there", "greetings", "good night", "hello how are you", "hi how are you", "howdy", "nice to meet you",
    "你好", "您好", "嗨", "哈喽", "早上好", "早", "下午好", "晚上好", "你好呀", "你好啊", "大家好", "hello呀", "你好吗", "在吗", "嘿", "晚安",
)  # fmt: skip
THANKS = (
    "not bad", "you are great", "you're great", "you are awesome", "excellent", "good work", "thanks huaben", "thank you huaben", "你真棒", "还行", "还不错", "真厉害", "厉害", "你真厉害", "太厉害了", "谢谢话本", "好棒", "棒", "thanks", "thank you", "thank you very much", "thx", "thanks a lot", "many thanks", "that's great", "very nice",
    "nice", "i love it", "i like it", "beautiful", "wonderful", "great job", "well done", "looks good", "good job",
    "perfect", "cool", "awesome", "lovely", "amazing", "so cute", "thank you so much", "looks great", "i like this one",
    "that looks great", "this is great", "it looks great", "how cute", "cute", "bye", "goodbye", "that is lovely",
    "谢谢", "多谢", "谢谢你", "谢谢啦", "感谢", "太好了", "真好看", "很好", "太棒了", "不错", "真棒", "好看", "真可爱", "很可爱", "太可爱了", "漂亮",
    "我喜欢", "好可爱", "真漂亮", "很漂亮", "辛苦了", "再见", "拜拜", "很好看", "非常好", "真不错", "画得真好", "画得很好", "完美", "太好看了",
)  # fmt: skip
IDENTITY = (
    "who made you", "who created you", "are you human", "what is huaben", "谁做的你", "谁做了你", "谁发明了你", "谁创造了你", "话本是什么", "你是人吗", "who are you", "what are you", "what is your name", "what's your name", "are you a robot", "tell me about yourself",
    "你是谁", "你叫什么", "你叫什么名字", "你是什么", "介绍一下你自己", "你是机器人吗", "自我介绍一下",
)  # fmt: skip
HELP = (
    "help", "what can you do", "what can you draw", "what do you draw", "how does this work", "how do i use this",
    "what can i ask", "what animals can you draw", "what colors do you have", "what colours do you have",
    "what styles do you have", "what backgrounds do you have", "which animals can you draw", "which styles can you draw",
    "which styles do you know", "what else can you do", "what do you know", "what can you paint", "你还会什么", "你还能画什么", "还能画什么", "what else can you draw", "which backgrounds can you draw", "what can i do here",
    "what styles can you draw", "what styles are there", "which styles are there",
    "帮助", "你会什么", "你能做什么", "你会画什么", "你能画什么", "你可以画什么", "怎么用", "你会做什么", "能画什么", "有哪些风格", "有什么风格",
    "有哪些颜色", "有哪些背景", "你会画哪些动物", "你能画哪些动物", "都能画什么", "可以画什么", "你还会画什么", "你都会画什么", "你会画些什么",
    "有哪些动物", "你能画些什么", "怎么玩",
)  # fmt: skip
RESTART = (
    "start over", "new picture", "start again", "clear everything", "clear the picture", "begin again", "reset",
    "let's start over", "start a new picture", "start from scratch", "clear", "a new picture please",
    "remove everything", "delete everything", "erase everything", "empty the picture", "remove all of them",
    "重新开始", "清空", "从头开始", "新的一张", "清空画面", "重来", "全部去掉", "全都去掉", "都去掉", "全部删掉", "全部删除", "全删了", "都删掉",
)  # fmt: skip
NO_DRAWING = (
    "don't draw anything", "do not draw anything", "draw nothing", "don't draw", "please don't draw anything",
    "don't draw anything yet", "stop drawing", "no drawing", "please do not draw anything", "don't draw now",
    "don't paint anything", "i don't want a picture", "不要画", "别画", "什么都别画", "什么都不要画", "先别画", "什么也别画", "先不要画", "不用画",
    "不画了", "不要画了", "不要画任何东西", "别画任何东西", "先别画了", "不用画了", "什么也不要画",
)  # fmt: skip

ORDINALS: dict[str, int] = {
    "first": 1, "1st": 1, "second": 2, "2nd": 2, "third": 3, "3rd": 3, "fourth": 4, "4th": 4, "fifth": 5, "5th": 5,
    "sixth": 6, "6th": 6, "seventh": 7, "eighth": 8, "original": 1, "initial": 1, "beginning": 1, "start": 1,
}  # fmt: skip
"""The last picture is -1; see the screenwriter."""

RELATIONS: dict[str, str] = {
    "left": "to_the_left_of on_the_left_of left_of on_the_left_side_of at_the_left_of to_the_left_side_of",
    "right": "to_the_right_of on_the_right_of right_of on_the_right_side_of at_the_right_of to_the_right_side_of",
    "beside": "closer_to close_by adjacent_to next_to beside near close_to by_the_side_of alongside right_next_to by_its_side together_with near_to"
    "|旁边 身边 边上 旁 附近 一旁 旁边的 身旁 挨着 紧挨着 靠近 靠着 附近的 近",
    "above": "above over on_top_of|上空",
    "below": "below under underneath beneath|脚下",
    "behind": "behind in_back_of|后面 背后 身后 后边 后方",
    "front": "in_front_of|前面 前边 前方 跟前 面前",
}

WORDS: dict[str, dict[str, str]] = {
    "DEGREE": {
        "more": "much a_lot way far even lots quite_a_bit|很多 多 得多 更",
        "less": "a_bit a_little slightly a_little_bit somewhat bit little_bit|一点 一点儿 一些 点 些 点儿 稍微 有点 稍",
    },
    "COMP": {
        "+": "bigger larger taller|大一点 大一些 更大 大点 大些 大点儿 再大 再大一点 大很多 大得多 更大一点 大一点儿 再大些 再大点 大一号 再大一号 再大一些",
        "-": "smaller tinier shorter littler|小一点 小一些 更小 小点 小些 小点儿 再小 再小一点 小很多 小得多 更小一点 小一点儿 再小些 再小点 小一号 再小一号"
        " 再小一些",
    },
    "TO": {"to": "into|到 成 为"},
    "FROM": {"from": "from off|从"},
    "WITH": {"with": "with wearing in_a having|"},
    "NEG": {
        "no": "no without not don't do_not never doesn't isn't aren't does_not is_not are_not minus except but_no"
        " no_more won't shouldn't any_more no_longer free_of"
        "|不 不要 没有 没 别 不戴 不用 不带 无 不再 别画 不画 不要画 别让 别戴 不需要 除了 不是 不想要",
    },
    "CONJ": {
        "and": "and n plus as_well_as along_with as_well with_its &|和 与 跟 以及 还有 并且 而且 同 及 并 还 外加 加上还有"
    },
    "THEN": {"then": "later later_on next_day the_next_day the_next_morning one_day the_next then after_that afterwards next|然后 接着 再 之后 接下来 最后 随后 随即 后来 第二天 次日 不久 过了一会儿 有一次 后来呢"},
    "DET": {
        "def": "same the_same the this that these those its his her their my our your it's|这 那 这个 那个 这些 那些 它的 他的 她的 我的 它们的 这只 那只 这条 那条"
        " 这头 那头 这棵 那棵 这座 那座 这辆 那辆 这颗 那颗 这朵 那朵 这艘 那艘 同一只 同一条 同一个 同一头 同一座 同样的 同一棵 同一辆 其中 刚才的 刚才那只 之前的 原来的",
        "indef": "a an some any",
        "another": "another one_more more other additional extra a_second|另一 另外一 别的 另 另外",
    },
    "PRON": {
        "it": "it him her he she itself|它 他 她 牠 它自己 自己",
        "them": "them they themselves|它们 他们 她们 牠们 俩 它俩 他们俩 它们俩 两个都",
    },
    "ALL": {
        "all": "all both each everyone everybody everything all_of_them both_of_them each_of_them every all_the"
        " all_three all_four"
        "|都 全 全部 所有 所有的 大家 全都 每只 每个 每 各 一起 全体 每一只 每一个",
    },
    "ONE": {"one": "one ones"},
    "GENERIC": {
        "animal": "animal animals creature creatures character characters pet pets friend friends thing things|动物 小动物 角色 家伙 小家伙"
        " 东西 朋友 小朋友们 伙伴",
    },
    "PROP": {
        "colour": "color colour colors colours|颜色 色",
        "background": "background backdrop setting scenery landscape place scene|背景 场景 地点 环境",
        "style": "style styles|风格 画风 画法",
        "place": "position location spot side positions places|位置 地方",
        "size": "size sizes|大小 个头 个子 尺寸",
        "expression": "expression mood face|表情 心情 脸上",
        "accessory": "accessory accessories|配饰 装饰",
        "count": "number|数量 数目",
        "direction": "direction way|方向",
    },
    "ONLY": {"only": "only just|只 只有 仅 就"},
    "MODAL": {
        "can": "can could would will may might want wants like would_like i'd_like can't please i_want i_need let's shall"
        " need needs needed can_u could_u i'd_love i_would_like i_want_to want_to i'd want_you_to would_you could_you can_you"
        "|请 帮 帮我 给我 能 可以 想 想要 要 希望 麻烦 我要 我想 我想要 我要看 能不能 可不可以 请你 请帮我 想看 来个 可否 能否 我希望 要求 喜欢 应该 应当 必须 需要 愿意",
    },
    "BE": {"is": "is are was were be been being am looks feels appears_to_be stays stands live lives lived stood standing"
           "|是 有 在 停 站 坐 站着 坐着 位于 站在 坐在 待在 躺 躺在 住在 是在 位于 正在 位置在 呆在 躲在 藏在 趴在 蹲在 在一起"},
    "VAGUE": {
        "vague": "nicer better prettier different differently something_else improve nicely interesting more_interesting"
        " fancier cooler cuter more_beautiful more_colourful more_colorful improved beautiful_again else fix"
        "|更好看 好看一点 更漂亮 漂亮一点 不一样 别的样子 好一点 更好 可爱一点 更可爱 改进 优化 好看点 漂亮点 别的颜色 换个颜色 换一个颜色 换种颜色"
        " 更有趣 有趣一点 美一点 改一下 改改 换一下 变一下 别的背景 换个背景 换种风格 换个风格 换一个背景 换一种风格",
    },
    "SHADE": {"shade": "light dark pale deep vivid|浅 深 淡 鲜 暗 亮"},
    "LOOKAT": {
        "each other": "face_each_other faces_each_other facing_each_other look_at_each_other looks_at_each_other"
        " looking_at_each_other|面对面 对视 互相看着 互相看 相互看着 互相望着 看着对方 面对对方 面朝对方",
        "at": "look_at looks_at looking_at face faces watch watches watching stare_at stares_at staring_at gaze_at turn_to"
        "|看着 看向 盯着 望着 望向 面向 面对 面朝 面对着 面向着 朝着 朝"
    },
    "PREFER": {"prefer": "i'd_prefer i_prefer i'd_rather_have i_would_prefer i_would_rather_have|更想要 更喜欢 宁愿要 更想看"},
    "TOOMANY": {"many": "too_many too_much|太多 太多了 多了"},
    "VARIED": {
        "colour": "different_colors different_colours in_different_colors in_different_colours of_different_colors"
        " of_different_colours various_colors various_colours differently_coloured differently_colored"
        "|不同颜色 不同颜色的 各种颜色 各色 颜色不同 各种颜色的 颜色各不相同 不一样的颜色"
    },
    "HOUR": {
        "night": "sunset sundown dusk twilight|日落 落日 夕阳 夕阳西下 黄昏 傍晚 晚霞",
        "day": "sunrise dawn daybreak sunshine sunlight|日出 清晨 黎明 拂晓 朝阳 朝霞 阳光",
    },
    "UPDOWN": {"top": "up upwards higher|往上 向上", "bottom": "down downwards lower|往下 向下"},
    "ADVERB": {"too": "also too as_well again|也 又 同样 也都"},
}

QUESTION: dict[str, str] = {
    "what": "describe what what's whats|描述 描述一下 介绍一下 说说 长什么样 什么样 长啥样 是什么样 干什么 做什么 干嘛 什么 啥 哪些",
    "which": "which|哪 哪个 哪只 哪种 哪一",
    "who": "who who's|谁",
    "where": "where where's|去哪 去哪了 去哪儿 去哪儿了 去哪里 去哪里了 哪里 哪儿 在哪 在哪里 在哪儿 什么地方 哪边 什么位置",
    "how many": "how_many|几 几只 多少 多少只 几个 几条 几头 几颗 几棵 几朵 几种 多少个 几座 几辆 几艘",
    "how": "how how's|怎么样 怎样 怎么 如何",
    "colour": "what_color what_colour which_color which_colour|什么颜色 啥颜色 哪种颜色 什么色 何种颜色",
    "accessory": "wearing_what|戴着什么 戴了什么 戴什么 穿什么 穿着什么 戴的是什么 戴的什么 围着什么",
    "expression": "how_does|什么表情 什么心情",
    "style": "what_style which_style|什么风格 哪种风格",
    "size": "how_big how_large what_size|多大 多高",
    "facing": "which_way which_direction what_direction|朝哪 朝哪边 面朝哪 面朝哪边 看哪 看哪边 看向哪 往哪看 哪个方向 朝哪个方向",
    "background": "what_background which_background|什么背景 背景是什么",
    "why": "why when|为什么 为啥 什么时候",
    "yesno": "is_there are_there do_you_see does did|吗 么 有没有 是不是 是否",
}

FUNCTION_EN = """
pic pics pictured aww awww lol haha hehe omg yay meant mean wait nah yo ugh ooh bedtime somewhere bad undo redo end
oops ops before pls plz u ur gonna wanna gimme lemme row became become liked loved enjoyed cause because while
a an the of to for with in on at by and or as so now here there this that these those it its it's i i'm me my mine you your
we us our they their who whom which whose has have had do did does done be is are was were been being please just really very
quite pretty rather one another some any then also too again still already yet let lets let's if but than from into up out off
about like such same together each other every many few several couple pair bit little lot lots kind sort type front image
picture pictures drawing drawings painting paintings illustration illustrations photo art artwork canvas page scene frame story
look looks looking looked see show shown full fully completely totally hmm oh ah um well okay ok yes no hey hi hello thanks thank
side corner position version time once upon upon's it'd i'd i'll i've we'd that's there's what's who's here's he's she's they're
we're don't doesn't isn't aren't actually maybe perhaps instead back next ready over around along onto inside within while
should would could can will shall may might must need want wants wanted love prefer think guess say says said tell give gives got
get gets try use using used add put make made made's body head neck eyes face its it theirs hers his her him he she them everyone
forget skip never mind bother rather bring brings keep keeps kept leave stick imagine suppose wish hope try consider replacement start starts started begin begins morning afternoon noon day daytime daylight mind falls fall becomes almost already someone somebody something anything nothing thing things way even away simply drawn done art works work person's coloured-in appears rendered exactly right color colour coloured colored colors colours
style styled background place placed number size sized facing posing pose sits sit sitting sat stands standing stay staying
waiting being's featuring features feature contains containing containing's includes including consisting shows showing
depicting having wearing wears during under's today tonight change changed first second third last set s re m ll ve d t
""".split()

FLUFF_EN = """
lonely single solitary sole
sunny quiet calm peaceful cozy cosy warm dreamy clean tidy proper regular usual typical proud pleased gentle cold hungry thirsty bored busy tender precious delightful
cute adorable beautiful lovely nice sweet funny friendly gorgeous charming wonderful amazing cool good great simple
colourful colorful dear kind pleasant super fantastic awesome fun best fine magical alone kindly quickly perfect brave naughty lazy clever smart shy curious playful fluffy furry
""".split()

FUNCTION_ZH = """
版本 版 坏了 有点挤 挤 算了 哎呀 唉 哇塞 呀呀 那儿 这儿 有天
的 地 得 了 着 过 吧 呢 啊 呀 哦 噢 嘛 哈 啦 哎 嗯 喔 哇 里 上 中 下 内 间 们 就 那 这 个 我 你 您 我们 你们 咱们 咱 一张 一幅 图 图片 图像 画面
图画 画面里 画面上 画面中 图里 图中 图上 画里 画中 画上面 照片里 幅 张 现在 然后呢 把 将 被 以 用 样子 样 身上 头上 脖子上 头 脖子 脸 眼睛 脸上
非常 很 特别 十分 挺 真 太 最 比较 稍微 一下 一下子 起来 出来 过来 过去 下来 上去 下去 进来 进去 看 看看 看起来 看上去 看着 瞧 像 像是 变 一样 似的
分别 前 往前 往后 排成一排 站成一排 站成 一排 那么 这样 那样 一个 个头 表情 位置 颜色 色 风格 风格的 背景 场景 身体 整个 全身 一种 种 款 故事 里面 里边 上边儿 之中 其 其它 其他 时候 时 刚才 之前
一会 一会儿 先 再 还 还是 只是 但是 但 不过 可是 而 风 因为 所以 如果 吗 么 呗 哟 嘿 哈哈 嘻嘻 请问 知道 觉得 说 叫 做 弄 开始 完 好 好的 行 可以 那边 这边
来 去 到 给 让 帮 想 要 能 会 吧 对 第 一 幅画 张画 一副 作品 画风 呈现 地点 是 整体 换 变化 主角 镜头 画布 旁 边 面 侧 身 有着 带着 带 拿着 顶着 配着 着 处
""".split()

FLUFF_ZH = """
可爱 可爱的 漂亮 漂亮的 好看 好看的 美丽 美丽的 萌萌 萌萌的 萌 温馨 美 棒 有趣 有趣的 好玩 乖乖 乖巧 调皮 友好 帅气 帅 酷 简单 简单的 神奇 超级 超 孤单 孤独 孤零零 安静 宁静 平静 晴朗 温暖 阳光明媚 独自 单独 独自一人 心爱 亲爱 勇敢 勇敢的 聪明 聪明的 害羞 害羞的 懒 懒懒 懒洋洋 好奇 冷 饿 渴 好冷 很冷 肚子饿 毛茸茸 毛茸茸的 毛绒绒 毛绒绒的 今天 白天 早上 早晨 中午 下午 一共 总共 共 主意 改主意 试 次 步 长 不变 一次 方式 方法 找 找个 每次 这次 那次 上次 忘了 别管 那只是 不如 干脆 顺便 麻烦你 辛苦 只不过 嘛 哎呀 额 话说 对了 其实 就是 就好 就行 行了 好了 好啦 今天 好吗 可以吗 行吗 好不好 可以么 好么 行不行 怎么样呢 如何 名字 一天 有一天 天气
""".split()

POSES: dict[str, frozenset[str]] = {}
"""Verbs that say what some species do anyway; the value is the species they suit."""

for _words, _species in (
    ("flying flies fly soaring|飞 飞翔 飞着 飞过 在飞 飞行 飞舞", "bird owl balloon star duck"),
    ("swimming swims swim|游泳 游 游着 游来游去 畅游 游动", "fish whale duck turtle frog penguin"),
    ("floating floats float|漂浮 漂 飘 飘着 浮着 漂着 飘浮", "balloon boat duck whale fish star"),
    ("shining shines shine twinkling glowing sparkling bright|闪闪 闪烁 发光 闪亮 闪闪发光 闪着光 闪耀 亮晶晶 亮", "star"),
    ("sailing sails sail|航行 开着", "boat"),
    ("growing grows blooming|长着 盛开 开着 生长 开放 种着", "tree flower mushroom"),
    ("parked perched|停着 停在", "car boat bird owl"),
):
    for _word in _words.replace("|", " ").split():
        POSES[_word] = frozenset(_species.split()) | POSES.get(_word, frozenset())

OUTSIDE: dict[str, str] = {
    "animal": "dragon horse pony cow bull tiger wolf panda monkey ape gorilla deer giraffe zebra hippo rhino camel kangaroo"
    " koala squirrel hamster hedgehog dolphin shark octopus crab lobster shrimp jellyfish starfish seahorse snake lizard"
    " crocodile dinosaur unicorn phoenix bee butterfly spider ant ladybug snail worm chicken hen rooster chick goose swan"
    " eagle parrot peacock crow pigeon seagull goat donkey bat beaver otter seal raccoon leopard cheetah goldfish monster"
    " polar|龙 恐龙 凤凰 独角兽 马 小马 斑马 河马 海马 牛 奶牛 小牛 水牛 羊驼 山羊 鸡 小鸡 公鸡 母鸡 鹅 天鹅 鹰 老鹰 鹦鹉 孔雀 乌鸦 麻雀 鸽子 海鸥"
    " 燕子 猴子 猴 猩猩 大猩猩 老虎 虎 豹子 豹 狼 大灰狼 鹿 小鹿 梅花鹿 长颈鹿 犀牛 骆驼 袋鼠 考拉 刺猬 松鼠 仓鼠 海豚 鲨鱼 章鱼 鳄鱼 螃蟹 虾 龙虾"
    " 水母 海星 金鱼 蛇 蜥蜴 蜘蛛 蜜蜂 蝴蝶 蚂蚁 瓢虫 蜻蜓 蜗牛 毛毛虫 虫子 熊猫 大熊猫 北极熊 狮子狗 驴 驴子 蝙蝠 海豹 浣熊 怪兽 怪物 麒麟 小龙 喷火龙 飞龙",
    "person": "person people man woman boy girl child children kid kids baby princess prince king queen knight doctor teacher"
    " mother father mom dad mum farmer astronaut pirate wizard witch santa human robot robots alien fairy mermaid superman daughter son daughters sons student students pupil pupils class toddler grandma grandpa"
    " batman pikachu ninja clown chef police policeman fireman soldier|人 男孩 女孩 孩子 小孩 小孩子 婴儿 宝宝 公主 王子 国王 王后 女王 骑士 医生 老师"
    " 妈妈 爸爸 爷爷 奶奶 哥哥 姐姐 弟弟 妹妹 农民 宇航员 海盗 巫师 女巫 圣诞老人 机器人 外星人 仙女 美人鱼 超人 蝙蝠侠 皮卡丘 忍者 小丑 厨师 女儿 儿子 孙女 孙子 学生 学生们 同学 同学们 孩子们 宝贝 警察 消防员 士兵 雪人"
    " 小朋友 男人 女人 老人 孙悟空 奥特曼 人物 人类 小人",
    "vehicle": "spaceship rocket plane airplane aeroplane aircraft helicopter train truck bus bicycle bike motorcycle submarine"
    " tank ufo tractor taxi|飞船 宇宙飞船 火箭 飞机 直升机 火车 卡车 公交车 公共汽车 自行车 摩托车 潜水艇 坦克 飞碟 拖拉机 出租车 马车 救护车 消防车 警车 高铁 地铁"
    " 热气球 雪橇 滑板 电动车 轮船 航母",
    "place": "paris london beijing shanghai tokyo york china moon mars space castle palace park garden farm zoo school hospital"
    " church temple river lake pond waterfall island volcano cave bridge road kitchen library museum restaurant shop playground"
    " rainforest swamp universe planet galaxy eiffel tower skyscraper|巴黎 伦敦 北京 上海 东京 纽约 中国 月球 火星 太空 宇宙 城堡 宫殿 公园 花园 农场 动物园 学校"
    " 医院 教堂 寺庙 河 小河 河边 湖 湖边 池塘 瀑布 岛 海岛 小岛 火山 山洞 洞穴 桥 小桥 厨房 图书馆 博物馆 餐厅 商店 操场 沼泽 星球 银河 铁塔 埃菲尔铁塔 长城 故宫"
    " 天安门 摩天大楼 高楼 车站 机场 教室 果园 村庄 乡村 竹林 游乐园 春天 夏天 秋天 西湖 长江 黄河",
    "style": "watercolor watercolour oil photorealistic realistic photograph anime cartoon pixel pixelated cubist"
    " impressionist realism 3d manga cyberpunk ghibli picasso gogh monet baroque|油画 水彩 水彩画 照片 写实 动漫 卡通 像素 像素画 素描 国画 漫画 印象派 赛博朋克"
    " 梵高 毕加索 莫奈 宫崎骏 立体派 版画 摄影 逼真 真实",
    "thing": "piano guitar violin drum ball football soccer basketball apple apples banana cake pizza ice cream bread food table"
    " chair bed book books computer phone lamp sun rainbow rain lightning fire umbrella sword gun flag gift present box bag"
    " shoes shirt dress jacket coat skirt boots gloves tie necklace ring wings rose roses grass cactus strawberry carrot tower"
    " snowman snowball candle window door basket kite bone fence wheel toy doll bell cup bottle sofa|钢琴 吉他 小提琴 鼓 球 足球 篮球 皮球 苹果 香蕉"
    " 蛋糕 披萨 冰淇淋 面包 西瓜 食物 桌子 椅子 床 书 书本 电脑 手机 台灯 太阳 月亮 彩虹 雨 下雨 闪电 火 雨伞 伞 剑 枪 旗子 国旗 礼物 盒子 箱子 包 书包 鞋子 鞋 衣服"
    " 裙子 外套 手套 领带 项链 戒指 翅膀 玫瑰 玫瑰花 向日葵 仙人掌 草莓 胡萝卜 黄瓜 雪球 蜡烛 窗户 门 篮子 风筝 骨头 玩具 娃娃 铃铛 杯子 瓶子 沙发 灯 灯笼 石头 蛋 鸡蛋"
    " 圣诞树 鸟巢 鸟笼 鱼缸 树屋 狗窝 车轮 贝壳 椰子树 苹果树 竹子 糖果 巧克力 橙子 橘子 篝火 帐篷 相机 耳环 靴子 袜子 裤子 尾巴 花瓶 花盆 电视 钟 时钟 秋千 雪花 冰 冰块 泡泡",
    "activity": "playing play plays played running run runs jumping jumps jump dancing dances dance singing sings sing talking"
    " walking strolling wandering hiding hides resting rests relaxing chatting exploring skipping hopping hops marching"
    " celebrating partying exercising sunbathing having_fun have_fun has_fun having_a_good_time hanging_out studying skating"
    " skiing surfing listening listening_to_music listens_to_music wrestling racing chasing chases chase following follows hugging hugs hug cuddling kissing"
    "|听音乐 听歌 听着音乐 玩 玩耍 玩儿 玩闹 嬉戏 嬉闹 游玩 做游戏 玩游戏 捉迷藏 跳舞 唱歌 唱 跳 跳跃 蹦 蹦跳 蹦蹦跳跳 跳来跳去 跑 跑步 奔跑 飞奔 跑来跑去 散步 散着步 漫步"
    " 走路 走来走去 打滚 晒太阳 聊天 说话 休息 歇着 追 追着 追逐 追赶 抱 抱着 拥抱 亲吻 滑雪 滑冰 溜冰 冲浪 爬 爬山 学习 上学 上班 工作 躲 躲着",
    "action": "eating eats eat drinking drinks reading reads riding rides driving drives holding holds kicking throwing"
    " fighting climbing cooking fishing writing painting's laughing's crying's hunting digging flying's"
    "|弹 弹钢琴 弹着钢琴 弹吉他 踢 踢球 踢足球 打 打球 打篮球 打架 吃 吃着 喝 喝水 喝茶 读书 看书 看电视 骑"
    " 骑着 骑车 玩球 钓鱼 划船 开车 种花 堆雪人 爬树 写字 做饭"
    " 打雪仗 放风筝 荡秋千 挖 咬 踩 举 举着 拿 握着 吹 吹着 扔 吃鱼 吃草 抓 抓鱼",
    "look": "striped spotted transparent invisible wooden golden's metal rainbow-coloured old broken dirty fat thin tall wild"
    " magic silver bronze neon multicolored multicoloured plaid checkered scared bald hairy|彩色"
    " 条纹 斑点 透明 隐形 木头 木制 金属 破旧 破 旧 老 胖 胖胖 瘦 高 古老 银色 彩虹色 五彩 害怕 光头 银 花斑 邪恶 五颜六色",
}
"""Things people ask for that the world does not have, so that they are named correctly when refused."""

NUMBERS: dict[str, int] = {
    "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10,
    "a couple of": 2, "a pair of": 2, "couple of": 2, "pair of": 2, "several": 3, "a few": 3, "few": 3, "twelve": 12,
    "a dozen": 12, "eleven": 11, "twenty": 20, "hundred": 100, "a hundred": 100, "a group of": 3, "a trio of": 3, "many": 4,
    "lots of": 4, "a lot of": 4, "a thousand": 1000,
    "一": 1, "二": 2, "两": 2, "俩": 2, "三": 3, "四": 4, "五": 5, "六": 6, "七": 7, "八": 8, "九": 9, "十": 10, "一对": 2, "一双": 2,
    "几": 3, "一群": 3, "十二": 12, "一百": 100, "二十": 20, "好几": 3, "许多": 4, "很多": 4, "十几": 12, "一些": 3,
}  # fmt: skip

MEASURES = "只 条 头 棵 座 辆 颗 朵 艘 个 顶 副 匹 位 株 间 栋 枝 尾 幢 所 架 名 群 片 处"

EMOJI: dict[str, Entry] = {
    letter: ("SPECIES", key)
    for key, letters in {
        "cat": "🐱🐈😺😸", "dog": "🐶🐕🐩", "rabbit": "🐰🐇", "bear": "🐻🧸", "fox": "🦊", "mouse": "🐭🐁", "pig": "🐷🐖",
        "frog": "🐸", "lion": "🦁", "elephant": "🐘", "sheep": "🐑🐏", "bird": "🐦🐤", "owl": "🦉", "penguin": "🐧",
        "duck": "🦆", "turtle": "🐢", "fish": "🐟🐠", "whale": "🐳🐋", "tree": "🌳🌲", "house": "🏠🏡", "car": "🚗🚙",
        "star": "⭐🌟", "flower": "🌸🌼🌺🌷", "mushroom": "🍄", "boat": "⛵🚤", "balloon": "🎈",
    }.items()
    for letter in letters
} | {
    letter: ("ACCESSORY", key)
    for key, letters in {"hat": "🎩🧢👒", "crown": "👑", "scarf": "🧣", "glasses": "👓🕶", "headphones": "🎧"}.items()
    for letter in letters
} | {
    letter: ("BACKGROUND", key)
    for key, letters in {
        "beach": "🏖", "snow": "❄☃", "night": "🌙🌃🌌", "sea": "🌊", "desert": "🏜", "city": "🏙", "mountain": "⛰🏔",
        "sky": "☁",
    }.items()
    for letter in letters
}  # fmt: skip

TRADITIONAL = str.maketrans(
    "貓魚鳥龜鴨豬獅綿熱氣車樹紅藍綠黃紫灰褐邊裡裏海灘雪森夜間畫張隻條顆輛換變給讓個們這還沒掉圍鏡頂風剪紙皮線開難過驚訝憤睏"
    "點兩幾誰嗎麼顏樣話說對錯謝請幫後帶圖場馬龍鯨貝兒蘋鋼彈飛機恐國東橙橘戴顧鬱關閉啟讀寫買賣號頭髮臉聽聲學寶實爺媽爸時現為無與雙",
    "猫鱼鸟龟鸭猪狮绵热气车树红蓝绿黄紫灰褐边里里海滩雪森夜间画张只条颗辆换变给让个们这还没掉围镜顶风剪纸皮线开难过惊讶愤困"
    "点两几谁吗么颜样话说对错谢请帮后带图场马龙鲸贝儿苹钢弹飞机恐国东橙橘戴顾郁关闭启读写买卖号头发脸听声学宝实爷妈爸时现为无与双",
)


def plural(noun: str) -> str:
    """Return the regular English plural."""
    if noun.endswith("y") and noun[-2:-1] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s")


def _split(text: str) -> list[str]:
    """Return the phrases of a data line; "|" only separates the languages, "_" joins words."""
    return [word.replace("_", " ").replace("-", " ") for word in text.replace("|", " ").split()]


@lru_cache(maxsize=1)
def lexicon() -> dict[str, Entry]:
    """Return every known phrase with its kind and key; English lower case, words parted by one space.

    Later groups never overrule earlier ones, so the world's own words win.
    """
    table: dict[str, Entry] = {}

    def put(phrase: str, kind: str, key: str) -> None:
        table.setdefault(phrase.replace("-", " ").lower(), (kind, key))

    groups: tuple[tuple[str, str, tuple[Term, ...]], ...] = (
        ("SPECIES", "species", SPECIES),
        ("BACKGROUND", "background", BACKGROUNDS),
        ("ACCESSORY", "accessory", ACCESSORIES[1:]),
        ("COLOUR", "colour", COLOURS),
        ("EXPRESSION", "expression", EXPRESSIONS),
        ("FACING", "facing", FACINGS),
        ("SIZE", "size", SIZES),
        ("PLACE", "place", PLACES),
        ("STYLE", "style", STYLES),
    )
    for kind, attribute, terms in groups:
        for entry in terms:
            for name in (*entry.en, *entry.zh):
                put(name, kind, entry.key)
            if kind == "SPECIES":
                for name in (entry.plural, *(plural(name) for name in entry.en)):
                    put(name, kind, entry.key)
                for name in entry.zh:
                    if not name.startswith(("小", "大")):
                        put("小" + name, kind, entry.key)
                        put("大" + name, kind, entry.key)
            if kind == "COLOUR":
                for name in entry.zh:
                    put(name + "色", kind, entry.key)
        for key, text in MORE.get(attribute, {}).items():
            for phrase in _split(text):
                put(phrase, kind, key)
    for kind, group in (("REL", RELATIONS), ("CMD", COMMANDS), ("Q", QUESTION)):
        for key, text in group.items():
            for phrase in _split(text):
                put(phrase, kind, key)
    for kind, group in WORDS.items():
        for key, text in group.items():
            for phrase in _split(text):
                put(phrase, kind, key)
    for phrase, number in NUMBERS.items():
        put(phrase, "NUM", str(number))
    for phrase in MEASURES.split():
        put(phrase, "MEAS", phrase)
    for phrase in POSES:
        put(phrase, "POSE", phrase)
    for key, text in OUTSIDE.items():
        for phrase in _split(text):
            if not phrase.endswith("'s"):
                put(phrase, "OUT", key)
                if phrase.isascii() and key in ("animal", "vehicle", "thing"):
                    put(plural(phrase), "OUT", key)
    for phrase in (*FLUFF_EN, *FLUFF_ZH):
        put(phrase, "FLUFF", phrase)
    for phrase in (*FUNCTION_EN, *FUNCTION_ZH):
        put(phrase, "FUNC", phrase)
    for phrase in ("的",):
        table[phrase] = ("DE", phrase)
    for phrase in ("right now", "all right", "right here", "right there", "a bit of", "over there", "of course",
                   "in front", "on top", "at all", "so that", "as well", "good looking"):  # fmt: skip
        table[phrase] = ("FUNC", phrase)
    for phrase in ("tree house", "bird house", "dog house", "bird cage", "hot air balloon", "star wars", "fire truck",
                   "polar bear", "sea lion", "guinea pig", "hot dog", "teddy boy", "snow man", "gold fish",
                   "oil painting", "ice cream", "christmas tree", "apple tree", "palm tree", "new york", "eiffel tower",
                   "piano keys", "lion king", "mickey mouse", "big ben", "house of cards"):  # fmt: skip
        table[phrase] = ("OUT", "thing")
    return table
